//! The mean over tokens, and what is left of a matrix without it (numerics §12).
//!
//! A sum has an order here, so that every backend finds the same mean: runs of 128 tokens from zero
//! in index order, then the runs in index order.

use multiversion::multiversion;
use rayon::prelude::*;

use super::element::{Contraction, Element, MatrixView};

/// Tokens that are summed before the sums are.
const RUN: usize = 128;

/// The mean over an axis of a view, f32: over its rows with [`Contraction::Rows`].
pub fn token_mean<E: Element>(x: MatrixView<'_, E>, over: Contraction) -> Vec<f32> {
    let (tokens, sums) = match over {
        Contraction::Rows => (x.rows(), sum_of_rows(&x)),
        Contraction::Columns => (x.cols(), sums_of_rows(&x)),
    };
    let inverse = 1.0 / tokens as f32;
    sums.into_iter().map(|sum| sum * inverse).collect()
}

/// The matrix without its [`token_mean`], each difference rounded to f32; `[tokens, columns]`,
/// whichever axis the tokens have in the view.
pub fn without_mean<E: Element>(x: MatrixView<'_, E>, over: Contraction, mean: &[f32]) -> Vec<f32> {
    match over {
        Contraction::Rows => {
            let rows = x.data().chunks_exact(x.cols().max(1));
            let difference = |(x, mean): (&E, &f32)| x.to_f32() - mean;
            rows.flat_map(|row| row.iter().zip(mean).map(difference))
                .collect()
        }
        Contraction::Columns => {
            let element = |token: usize, column: usize| x.data()[column * x.cols() + token];
            (0..x.cols())
                .flat_map(|token| {
                    let columns = mean.iter().enumerate();
                    columns.map(move |(column, mean)| element(token, column).to_f32() - mean)
                })
                .collect()
        }
    }
}

/// The sum of all rows.
fn sum_of_rows<E: Element>(x: &MatrixView<'_, E>) -> Vec<f32> {
    let run = |rows: &[E]| {
        let mut sums = vec![0.0_f32; x.cols()];
        for row in rows.chunks_exact(x.cols()) {
            add_row(row, &mut sums);
        }
        sums
    };
    if x.cols() == 0 {
        return vec![];
    }
    let runs: Vec<Vec<f32>> = x.data().par_chunks(RUN * x.cols()).map(run).collect();
    let mut total = vec![0.0_f32; x.cols()];
    for sums in &runs {
        add_row(sums, &mut total);
    }
    total
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
fn add_row<E: Element>(row: &[E], sums: &mut [f32]) {
    for (sum, x) in sums.iter_mut().zip(row) {
        *sum += x.to_f32();
    }
}

/// The sum of each row.
fn sums_of_rows<E: Element>(x: &MatrixView<'_, E>) -> Vec<f32> {
    let total = |terms: &mut dyn Iterator<Item = f32>| terms.fold(0.0, |sum, term| sum + term);
    let sum = |row: &[E]| {
        let runs = row.chunks(RUN);
        total(&mut runs.map(|run| total(&mut run.iter().map(|x| x.to_f32()))))
    };
    if x.cols() == 0 {
        return vec![0.0; x.rows()];
    }
    x.data().par_chunks(x.cols()).map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_axes_of_a_view_give_the_same_bits() {
        let (tokens, columns) = (300, 7);
        let x: Vec<f32> = (0..tokens * columns)
            .map(|i| (i as f32 * 0.37).sin() + 3.0)
            .collect();
        let turned: Vec<f32> = (0..tokens * columns)
            .map(|i| x[i % tokens * columns + i / tokens])
            .collect();
        let rows = MatrixView::new(&x, tokens, columns).unwrap();
        let cols = MatrixView::new(&turned, columns, tokens).unwrap();
        let mean = token_mean(rows, Contraction::Rows);
        assert_eq!(mean, token_mean(cols, Contraction::Columns));
        let rest = without_mean(rows, Contraction::Rows, &mean);
        assert_eq!(rest, without_mean(cols, Contraction::Columns, &mean));
        let exact: f64 = x
            .iter()
            .step_by(columns)
            .map(|&x| f64::from(x))
            .sum::<f64>()
            / 300.0;
        assert!((f64::from(mean[0]) - exact).abs() < 1e-6);
        let left: f64 = rest.iter().step_by(columns).map(|&x| f64::from(x)).sum();
        assert!(left.abs() < 1e-3, "{left}");
    }

    #[test]
    fn sums_run_in_the_order_of_the_text() {
        let x: Vec<f32> = (0..1000)
            .map(|i| 1.0 + (i as f32 * 1.7).cos() * 1e-3)
            .collect();
        let view = MatrixView::new(&x, 1000, 1).unwrap();
        let add = |sum: f32, x: &f32| sum + x;
        let runs: Vec<f32> = x.chunks(128).map(|run| run.iter().fold(0.0, add)).collect();
        let expected = runs.iter().fold(0.0, add) * (1.0 / 1000.0_f32);
        assert_eq!(token_mean(view, Contraction::Rows), [expected]);
    }
}
