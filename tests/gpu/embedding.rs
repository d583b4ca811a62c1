//! The embedding on a device: rows of a table, and for each row the sum over the tokens that took
//! it.

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, module};
use burn_hybrid_ops::{HybridEngine, ops};

use crate::activations::{assert_close, dtypes, exact, reference, values};
use crate::turns::{Fused, Plain, exclusive};

/// A table, and which of its rows each token takes.
#[derive(Clone, Copy, Debug)]
struct Case {
    table: [usize; 2],
    tokens: [usize; 2],
    row: fn(usize) -> usize,
}

impl Case {
    fn ids<B: Backend>(&self) -> Tensor<B, 2, Int> {
        let count = self.tokens[0] * self.tokens[1];
        let ids = (0..count).map(|i| ((self.row)(i) % self.table[0]) as i64);
        let data = TensorData::new(ids.collect::<Vec<_>>(), self.tokens);
        Tensor::from_data(data, &B::Device::default())
    }

    fn slopes(&self, dtype: DType) -> (Vec<f32>, [usize; 3]) {
        let [batch, seq] = self.tokens;
        let shape = [batch, seq, self.table[1]];
        (values(shape.iter().product(), 1.0, 2, dtype), shape)
    }

    /// Rows and the gradient of the table.
    fn run<B: AutodiffBackend + HybridEngine>(&self, dtype: DType) -> [Vec<f64>; 2] {
        let device = B::Device::default();
        let table = values(self.table.iter().product(), 2.0, 1, dtype);
        let table = TensorData::new(table, self.table);
        let table = Tensor::<B, 2>::from_data(table, (&device, DType::F32)).require_grad();
        let rows = ops::embedding(&table, &self.ids(), dtype).expect("a device has kernels");
        assert_eq!(rows.dtype(), dtype);
        let (slopes, shape) = self.slopes(dtype);
        let slopes = TensorData::new(slopes, shape);
        let slopes = Tensor::<B, 3>::from_data(slopes, (&device, DType::F32));
        let grads = (rows.clone().cast(DType::F32) * slopes).sum().backward();
        [exact(rows), exact(table.grad(&grads).unwrap())]
    }
}

/// Kills: a row that begins at the wrong token or ends at the next one, tokens of a tile that are
/// counted twice, columns beyond the first ones, a row of nobody that is not zero, sums in the
/// dtype of the activations.
#[test]
fn rows_and_the_gradient_of_their_table_are_the_definitions() {
    let Some(_turn) = exclusive() else { return };
    let case = |table, tokens, row| Case { table, tokens, row };
    for case in [
        case([7, 6], [3, 5], |i| i * 3),
        case([3, 1], [1, 1], |_| 2),
        case([5, 32], [4, 300], |_| 3),
        case([40, 64], [2, 700], |i| if i % 3 == 0 { 5 } else { i * 7 }),
        case([300, 520], [1, 257], |i| i * i),
        case([5000, 8], [2, 1024], |i| i.wrapping_mul(2_654_435_761) >> 7),
    ] {
        for dtype in dtypes() {
            let table = values(case.table.iter().product(), 2.0, 1, dtype);
            let table = reference(&table, case.table);
            let rows = module::embedding(table.clone(), case.ids());
            let (slopes, shape) = case.slopes(dtype);
            let grads = (rows.clone() * reference(&slopes, shape)).sum().backward();
            let expected = exact(table.grad(&grads).unwrap());
            let [got_rows, got] = case.run::<Autodiff<Plain>>(dtype);
            assert_eq!(got_rows, exact(rows), "{case:?}");
            assert_close(&got, &expected, DType::F32, &format!("{case:?}, {dtype:?}"));
            let again = [got_rows, got];
            assert!(again == case.run::<Autodiff<Plain>>(dtype), "two runs");
            assert!(again == case.run::<Autodiff<Fused>>(dtype), "with fusion");
        }
    }
}

/// A token outside of the table is an error of the caller's that must not touch other memory.
#[test]
fn a_token_outside_of_the_table_is_nan_and_has_no_gradient() {
    let Some(_turn) = exclusive() else { return };
    type B = Autodiff<Plain>;
    let device = Default::default();
    let table = Tensor::<B, 2>::ones([5, 4], &device).require_grad();
    let ids = TensorData::new(vec![0_i64, -1, 5, 2, 0], [1, 5]);
    let rows = ops::embedding(&table, &Tensor::from_data(ids, &device), DType::F32).unwrap();
    let got = exact(rows.clone());
    let is_nan: Vec<_> = got
        .chunks(4)
        .map(|row| row.iter().all(|v| v.is_nan()))
        .collect();
    assert_eq!(is_nan, [false, true, true, false, false]);
    let grads = rows.sum().backward();
    let sums = [[2.0; 4], [0.0; 4], [1.0; 4], [0.0; 4], [0.0; 4]];
    assert_eq!(exact(table.grad(&grads).unwrap()), sums.concat());
}
