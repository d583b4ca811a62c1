//! The documented register layout, held to its tables and to an interpreter.

use super::*;

/// PTX ISA 9.2 §9.7.14.5, multiplicand A: row and `k` of element `a_i` of a lane.
fn ptx_a(lane: u32, i: u32) -> (u32, u32) {
    let (group, member) = (lane >> 2, lane % 4);
    let upper = i < 8 || (16..24).contains(&i);
    let row = if upper { group } else { group + 8 };
    (row, member * 8 + (i & 7) + if i < 16 { 0 } else { 32 })
}

/// Multiplicand B: `k` and column of element `b_i`.
fn ptx_b(lane: u32, i: u32) -> (u32, u32) {
    let (group, member) = (lane >> 2, lane % 4);
    (member * 8 + (i & 7) + if i < 8 { 0 } else { 32 }, group)
}

/// Accumulators: row and column of element `c_i`.
fn ptx_d(lane: u32, i: u32) -> (u32, u32) {
    let (group, member) = (lane >> 2, lane % 4);
    let row = if i < 2 { group } else { group + 8 };
    (row, member * 2 + (i & 1))
}

/// The image of `index` under a CuTe layout: the digits of `index` in the mixed radix `shape`,
/// first fastest, times `stride`.
fn cute(mut index: u32, shape: &[u32], stride: &[u32]) -> u32 {
    let mut image = 0;
    for (extent, stride) in shape.iter().zip(stride) {
        image += (index % extent) * stride;
        index /= extent;
    }
    image
}

fn lanes_and(registers: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..LANES).flat_map(move |lane| (0..registers).map(move |i| (lane, i)))
}

/// Every element of a `rows x columns` matrix is among `places` exactly once.
fn assert_covers(mut places: Vec<(u32, u32)>, rows: u32, columns: u32) {
    places.sort_unstable();
    let all = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    assert!(places.into_iter().eq(all));
}

#[test]
fn registers_of_a_hold_what_the_ptx_table_says() {
    for (lane, i) in lanes_and(A_REGISTERS * 8) {
        let here = (a_row(lane, i / 8), a_word(lane, i / 8) * 8 + i % 8);
        assert_eq!(here, ptx_a(lane, i), "lane {lane}, a{i}");
    }
    assert_covers(
        lanes_and(32).map(|(lane, i)| ptx_a(lane, i)).collect(),
        M,
        64,
    );
}

#[test]
fn registers_of_b_hold_what_the_ptx_table_says() {
    for (lane, i) in lanes_and(B_REGISTERS * 8) {
        let here = (b_word(lane, i / 8) * 8 + i % 8, b_column(lane));
        assert_eq!(here, ptx_b(lane, i), "lane {lane}, b{i}");
    }
    assert_covers(
        lanes_and(16).map(|(lane, i)| ptx_b(lane, i)).collect(),
        64,
        N,
    );
}

#[test]
fn accumulators_are_where_the_ptx_table_says() {
    for (lane, i) in lanes_and(D_ELEMENTS) {
        let here = (d_row(lane, i), d_column(lane, i));
        assert_eq!(here, ptx_d(lane, i), "lane {lane}, c{i}");
    }
    assert_covers(lanes_and(4).map(|(lane, i)| ptx_d(lane, i)).collect(), M, N);
}

#[test]
fn strides_of_cute_give_the_same_elements() {
    // Lane (4, 8), value (8, 2, 2) -> m + 16 k.
    for (lane, i) in lanes_and(32) {
        let image = cute(lane, &[4, 8], &[128, 1]) + cute(i, &[8, 2, 2], &[16, 8, 512]);
        assert_eq!((image % M, image / M), ptx_a(lane, i));
    }
    // Lane (4, 8), value (8, 2) -> n + 8 k.
    for (lane, i) in lanes_and(16) {
        let image = cute(lane, &[4, 8], &[64, 1]) + cute(i, &[8, 2], &[8, 256]);
        assert_eq!((image / N, image % N), ptx_b(lane, i));
    }
    // Lane (4, 8), value (2, 2) -> m + 16 n.
    for (lane, i) in lanes_and(4) {
        let image = cute(lane, &[4, 8], &[32, 1]) + cute(i, &[2, 2], &[16, 8]);
        assert_eq!((image % M, image / M), ptx_d(lane, i));
    }
    // Lane (2, 2, 8) -> row of A, lane (4, 8) -> column of B.
    for lane in 0..LANES {
        assert_eq!(a_scale_row(lane), cute(lane, &[2, 2, 8], &[8, 0, 1]));
        assert_eq!(b_scale_column(lane), cute(lane, &[4, 8], &[0, 1]));
    }
}

#[test]
fn selectors_of_zero_read_every_scale_once() {
    // `thread-id-a` 0: members 0 and 1 of a group give the scales of A. `thread-id-b` 0: member 0.
    let rows = (0..LANES)
        .filter(|lane| lane % 4 < 2)
        .map(|lane| (0, a_scale_row(lane)));
    assert_covers(rows.collect(), 1, M);
    let columns = (0..LANES)
        .filter(|lane| lane % 4 == 0)
        .map(|lane| (0, b_scale_column(lane)));
    assert_covers(columns.collect(), 1, N);
    for row in 0..M {
        let lane = a_scale_lane(row);
        assert!(lane % 4 < 2 && a_scale_row(lane) == row);
    }
    for column in 0..N {
        let lane = b_scale_lane(column);
        assert!(lane.is_multiple_of(4) && b_scale_column(lane) == column);
    }
}

#[test]
fn holders_are_the_inverse_of_registers() {
    for (lane, register) in lanes_and(A_REGISTERS) {
        let (row, word) = (a_row(lane, register), a_word(lane, register));
        assert_eq!((a_lane(row, word), a_register(row, word)), (lane, register));
    }
    for (lane, register) in lanes_and(B_REGISTERS) {
        let (column, word) = (b_column(lane), b_word(lane, register));
        assert_eq!((b_lane(column, word), b_register(word)), (lane, register));
    }
}
