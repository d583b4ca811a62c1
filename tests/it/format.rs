//! Properties of the layouts: what goes in comes out, and nothing else does.

use burn_nvfp4::format::{packing, swizzle};
use proptest::prelude::*;

proptest! {
    #[test]
    fn codes_pack_and_unpack(codes in prop::collection::vec(0..16u8, 0..200)) {
        let packed = packing::pack(&codes);
        prop_assert_eq!(packed.len(), codes.len().div_ceil(2));
        let unpacked = packing::unpack(&packed);
        prop_assert_eq!(&unpacked[..codes.len()], &codes);
        prop_assert!(unpacked[codes.len()..].iter().all(|&pad| pad == 0));
    }

    #[test]
    fn scales_swizzle_and_back(rows in 1..300usize, cols in 1..40usize, seed in any::<u8>()) {
        // No zero among the scales, so that padding is what is zero.
        let scale = |i: usize| (i.wrapping_mul(31) + usize::from(seed)) % 255 + 1;
        let linear: Vec<u8> =
            (0..rows * cols).map(|i| u8::try_from(scale(i)).unwrap()).collect();
        let swizzled = swizzle::swizzle(&linear, rows, cols).unwrap();
        prop_assert_eq!(swizzled.len(), rows.next_multiple_of(128) * cols.next_multiple_of(4));
        let padding = swizzled.len() - linear.len();
        prop_assert_eq!(swizzled.iter().filter(|&&scale| scale == 0).count(), padding);
        prop_assert_eq!(swizzle::unswizzle(&swizzled, rows, cols).unwrap(), linear);
    }

    #[test]
    fn every_scale_has_a_place_of_its_own(rows in 1..200usize, cols in 1..20usize) {
        let mut taken = vec![false; swizzle::swizzled_len(rows, cols).unwrap()];
        for row in 0..rows {
            for col in 0..cols {
                let place = &mut taken[swizzle::swizzled_index(row, col, cols)];
                prop_assert!(!*place, "({row}, {col})");
                *place = true;
            }
        }
    }
}
