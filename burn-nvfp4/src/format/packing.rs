//! Two 4-bit codes in a byte: the even index in the low nibble (numerics §1).

/// Packs codes, two to a byte, even index low; only the low four bits of each code are read.
///
/// # Shapes
/// `codes`: `2 n`; `packed`: `n`. What is beyond the shorter of the two is left alone.
#[inline(always)]
pub fn pack_into(codes: &[u8], packed: &mut [u8]) {
    let (pairs, _) = codes.as_chunks::<2>();
    for (byte, [even, odd]) in packed.iter_mut().zip(pairs) {
        *byte = (even & 0xF) | (odd << 4);
    }
}

/// Unpacks nibbles to one code per byte, low nibble first.
///
/// # Shapes
/// `packed`: `n`; `codes`: `2 n`. What is beyond the shorter of the two is left alone.
#[inline(always)]
pub fn unpack_into(packed: &[u8], codes: &mut [u8]) {
    let (pairs, _) = codes.as_chunks_mut::<2>();
    for (byte, pair) in packed.iter().zip(pairs) {
        *pair = [byte & 0xF, byte >> 4];
    }
}

/// Packs codes, two to a byte; a last odd code stands alone in its low nibble.
pub fn pack(codes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; codes.len().div_ceil(2)];
    pack_into(codes, &mut packed);
    if let (true, Some(last), Some(&code)) = (codes.len() % 2 == 1, packed.last_mut(), codes.last())
    {
        *last = code & 0xF;
    }
    packed
}

/// Unpacks nibbles, low nibble first.
pub fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut codes = vec![0; packed.len() * 2];
    unpack_into(packed, &mut codes);
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_even_index_is_the_low_nibble() {
        assert_eq!(pack(&[1, 2, 3, 4]), [0x21, 0x43]);
        assert_eq!(unpack(&[0x21, 0x43]), [1, 2, 3, 4]);
        assert_eq!(pack(&[1, 2, 3]), [0x21, 0x03]);
    }

    #[test]
    fn every_byte_unpacks_and_packs_back() {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        assert_eq!(pack(&unpack(&bytes)), bytes);
    }
}
