//! The instruction on the host, by the documented register layout alone, and a GEMM made of it.
//!
//! [`execute`] knows nothing of the loader: it walks the elements of every lane's registers in the
//! order of the PTX tables and sorts them into matrices. The tests fill the registers by the index
//! functions that the kernel runs, first with tags, then with quantized matrices, whose product
//! must be that of `cpu/`.

use super::layout::{
    A_REGISTERS, B_REGISTERS, LANES, M, N, WORDS, a_row, a_scale_row, a_word, b_column,
    b_scale_column, b_word,
};
use super::staging::staged_word;
use super::tiling::Tiling;
use crate::cpu::{Contraction, MatrixView, gemm_f64, quantize};
use crate::format::{BlockScales, BlockShape, PackedMatrix, e2m1, e4m3};
use crate::recipe::{OperandSpec, Rounding, ScaleRule, Transform};
use crate::rng::{RandomKey, Stream};

/// The registers that a lane brings to the instruction.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    a: [u32; A_REGISTERS as usize],
    b: [u32; B_REGISTERS as usize],
    a_scales: u32,
    b_scales: u32,
}

type Lanes = [Lane; LANES as usize];

/// The matrices of one MMA, as the instruction sees them: codes and scale bytes.
#[derive(Debug, PartialEq)]
struct Seen {
    a: Vec<Vec<u32>>,
    b: Vec<Vec<u32>>,
    a_scales: Vec<[u8; 4]>,
    b_scales: Vec<[u8; 4]>,
}

/// Sorts registers into matrices (PTX ISA 9.2 §9.7.14.3 and §9.7.14.5; all selectors 0). B is
/// transposed: a row is a column of the instruction's B.
fn see(lanes: &Lanes) -> Seen {
    let mut seen = Seen {
        a: vec![vec![u32::MAX; 64]; 16],
        b: vec![vec![u32::MAX; 64]; 8],
        a_scales: vec![[0; 4]; 16],
        b_scales: vec![[0; 4]; 8],
    };
    for (lane, registers) in lanes.iter().enumerate() {
        let (group, member) = (lane >> 2, lane % 4);
        for i in 0..32 {
            let row = if i < 8 || (16..24).contains(&i) {
                group
            } else {
                group + 8
            };
            let k = member * 8 + (i & 7) + if i < 16 { 0 } else { 32 };
            seen.a[row][k] = (registers.a[i / 8] >> (4 * (i % 8))) & 15;
        }
        for i in 0..16 {
            let k = member * 8 + (i & 7) + if i < 8 { 0 } else { 32 };
            seen.b[group][k] = (registers.b[i / 8] >> (4 * (i % 8))) & 15;
        }
        match member {
            0 => {
                seen.a_scales[group] = registers.a_scales.to_le_bytes();
                seen.b_scales[group] = registers.b_scales.to_le_bytes();
            }
            1 => seen.a_scales[group + 8] = registers.a_scales.to_le_bytes(),
            _ => {}
        }
    }
    seen
}

/// `D += A B` of one MMA, in f64.
fn execute(lanes: &Lanes, d: &mut [[f64; N as usize]; M as usize]) {
    let seen = see(lanes);
    let value = |codes: &[u32], scales: [u8; 4], k: usize| {
        let code = u8::try_from(codes[k]).unwrap();
        // The sign bit of a scale is not read.
        f64::from(e2m1::decode(code)) * f64::from(e4m3::decode(scales[k / 16] & 0x7F))
    };
    for (i, row) in d.iter_mut().enumerate() {
        for (j, sum) in row.iter_mut().enumerate() {
            for k in 0..64 {
                *sum +=
                    value(&seen.a[i], seen.a_scales[i], k) * value(&seen.b[j], seen.b_scales[j], k);
            }
        }
    }
}

/// One operand's stage in shared memory, filled as the kernel fills it.
struct Stage {
    codes: Vec<u32>,
    scales: Vec<u32>,
    rows: u32,
    row_words: u32,
}

impl Stage {
    /// Fills the tile `(first row, first word)` with what `code_word` and `scale_word` say of it.
    fn fill(
        (rows, row_words): (u32, u32),
        code_word: impl Fn(u32, u32) -> u32,
        scale_word: impl Fn(u32, u32) -> u32,
    ) -> Self {
        let steps = row_words / WORDS;
        let mut codes = vec![0; (rows * row_words) as usize];
        let mut scales = vec![0; (rows * steps) as usize];
        for row in 0..rows {
            for word in 0..row_words {
                codes[staged_word(row, word, row_words) as usize] = code_word(row, word);
            }
            for step in 0..steps {
                scales[(step * rows + row) as usize] = scale_word(row, step);
            }
        }
        Self {
            codes,
            scales,
            rows,
            row_words,
        }
    }

    fn word(&self, row: u32, word: u32) -> u32 {
        self.codes[staged_word(row, word, self.row_words) as usize]
    }

    fn scale_word(&self, row: u32, step: u32) -> u32 {
        self.scales[(step * self.rows + row) as usize]
    }
}

/// Registers of a lane group for the MMA at row `row` of A, column `column` of B, step `step`.
fn load(a: &Stage, b: &Stage, (row, column, step): (u32, u32, u32)) -> Lanes {
    std::array::from_fn(|lane| {
        let lane = u32::try_from(lane).unwrap();
        let register = |i: usize| u32::try_from(i).unwrap();
        Lane {
            a: std::array::from_fn(|i| {
                let i = register(i);
                a.word(row + a_row(lane, i), step * WORDS + a_word(lane, i))
            }),
            b: std::array::from_fn(|i| {
                let i = register(i);
                b.word(column + b_column(lane), step * WORDS + b_word(lane, i))
            }),
            a_scales: a.scale_word(row + a_scale_row(lane), step),
            b_scales: b.scale_word(column + b_scale_column(lane), step),
        }
    })
}

#[test]
fn every_code_and_scale_of_a_tile_reaches_its_element() {
    for tiling in [Tiling::LARGE, Tiling::SHALLOW, Tiling::SMALL] {
        let [rows, columns] = tiling.tile();
        let row_words = tiling.row_words();
        // Tags of 4 bits cannot be unique: one digit of the address per pass makes them so
        // together.
        for digit in 0..5 {
            let tag = |row: u32, k: u32| ((row * tiling.tile_k() + k) >> (4 * digit)) & 15;
            let word = |row: u32, word: u32| {
                (0..8).fold(0, |bits, i| bits | tag(row, word * 8 + i) << (4 * i))
            };
            let scale = |row: u32, step: u32| (row << 16 | step) ^ 0x5A00_0000;
            let a = Stage::fill((rows, row_words), word, scale);
            let b = Stage::fill((columns, row_words), word, scale);
            for step in 0..tiling.k_steps() {
                for (row, column) in (0..rows)
                    .step_by(16)
                    .zip((0..columns).step_by(8).cycle())
                    .chain((0..rows).step_by(16).cycle().zip((0..columns).step_by(8)))
                {
                    let seen = see(&load(&a, &b, (row, column, step)));
                    let codes = |first: u32, count: u32| -> Vec<Vec<u32>> {
                        let of = |row| (0..64).map(|k| tag(first + row, step * 64 + k)).collect();
                        (0..count).map(of).collect()
                    };
                    let scales = |first: u32, count: u32| -> Vec<[u8; 4]> {
                        (0..count)
                            .map(|row| scale(first + row, step).to_le_bytes())
                            .collect()
                    };
                    let expected = Seen {
                        a: codes(row, 16),
                        b: codes(column, 8),
                        a_scales: scales(row, 16),
                        b_scales: scales(column, 8),
                    };
                    assert_eq!(seen, expected, "{tiling:?} at {row}, {column}, {step}");
                }
            }
        }
    }
}

fn quantized(rows: usize, k: usize, block: BlockShape, seed: u64) -> PackedMatrix {
    let mut state = seed;
    let values: Vec<f32> = (0..rows * k)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(seed | 1);
            let mantissa = ((state >> 40) as f32 / 8_388_608.0) - 1.0;
            mantissa * 2f32.powi(i32::try_from((state >> 33) % 12).unwrap() - 6)
        })
        .collect();
    let spec = OperandSpec::Nvfp4 {
        block,
        scale: ScaleRule::Tensor,
        rounding: Rounding::NearestEven,
        transform: Transform::None,
    };
    let key = RandomKey {
        seed: 0,
        step: 0,
        micro_batch: 0,
        stream: Stream::Other(0),
    };
    let view = MatrixView::new(&values, rows, k).unwrap();
    quantize(view, Contraction::Columns, &spec, key).unwrap()
}

/// A stage of a packed matrix; zeros outside of it.
fn stage_of(matrix: &PackedMatrix, first: u32, tile: u32, (rows, row_words): (u32, u32)) -> Stage {
    let words: &[u32] = &bytemuck::pod_collect_to_vec(matrix.codes());
    let matrix_words = u32::try_from(matrix.padded_k() / 8).unwrap();
    let blocks = matrix_words / 2;
    let BlockScales::E4m3(scales) = matrix.block_scales() else {
        panic!("NVFP4 has E4M3 scales");
    };
    let block_rows = u32::try_from(matrix.format().block_dims().rows).unwrap();
    let inside = |row: u32| first + row < u32::try_from(matrix.rows()).unwrap();
    let code_word = |row: u32, word: u32| {
        let column = tile * row_words + word;
        if inside(row) && column < matrix_words {
            words[((first + row) * matrix_words + column) as usize]
        } else {
            0
        }
    };
    let scale_word = |row: u32, step: u32| {
        (0..4).fold(0, |word, byte| {
            let block = (tile * row_words / WORDS + step) * 4 + byte;
            let at = (first + row) / block_rows * blocks + block;
            if inside(row) && block < blocks {
                word | u32::from(scales[at as usize]) << (8 * byte)
            } else {
                word
            }
        })
    };
    Stage::fill((rows, row_words), code_word, scale_word)
}

/// The GEMM of the kernel, cube by cube, with [`execute`] for the instruction.
fn gemm(lhs: &PackedMatrix, rhs: &PackedMatrix, tiling: Tiling) -> Vec<f64> {
    let ([tile_rows, tile_columns], row_words) = (tiling.tile(), tiling.row_words());
    let (m, n) = (lhs.rows(), rhs.rows());
    let tiles = u32::try_from(lhs.padded_k())
        .unwrap()
        .div_ceil(tiling.tile_k());
    let mut out = vec![0.0; m * n];
    for first_row in (0..u32::try_from(m).unwrap()).step_by(tile_rows as usize) {
        for first_column in (0..u32::try_from(n).unwrap()).step_by(tile_columns as usize) {
            for tile in 0..tiles {
                let a = stage_of(lhs, first_row, tile, (tile_rows, row_words));
                let b = stage_of(rhs, first_column, tile, (tile_columns, row_words));
                for row in (0..tile_rows).step_by(16) {
                    for column in (0..tile_columns).step_by(8) {
                        let mut d = [[0.0; N as usize]; M as usize];
                        for step in 0..tiling.k_steps() {
                            execute(&load(&a, &b, (row, column, step)), &mut d);
                        }
                        for (i, d) in d.iter().enumerate() {
                            for (j, d) in d.iter().enumerate() {
                                let i = (first_row + row) as usize + i;
                                let j = (first_column + column) as usize + j;
                                if i < m && j < n {
                                    out[i * n + j] += d;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    out
}

#[test]
fn a_gemm_of_interpreted_instructions_is_that_of_the_cpu() {
    let cases = [
        (16, 8, 64, BlockShape::Row16),
        (37, 29, 80, BlockShape::Row16),
        (70, 130, 272, BlockShape::Tile16x16),
        (1, 3, 16, BlockShape::Tile16x16),
    ];
    for (m, n, k, block) in cases {
        let lhs = quantized(m, k, BlockShape::Row16, 11);
        let rhs = quantized(n, k, block, 12);
        // f64 sums of these are exact, in any order.
        let expected = gemm_f64(&lhs, &rhs);
        for tiling in [Tiling::SHALLOW, Tiling::SMALL] {
            assert_eq!(
                gemm(&lhs, &rhs, tiling),
                expected,
                "{m}x{n}x{k}, {block:?}, {tiling:?}"
            );
        }
    }
}
