//! The mean over tokens and what is left without it, against `cpu`.

use burn::tensor::{DType, TensorData};
use burn_nvfp4::cpu::{Contraction, MatrixView, token_mean, without_mean};
use burn_nvfp4::kernels::mean::split_token_mean;
use half::bf16;

use super::data::normal;
use super::{bits, first_difference, matrix};
use crate::device::{device, download, supports, upload};

#[test]
fn means_over_tokens_have_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    for [tokens, columns] in [[1, 1], [128, 16], [129, 33], [1000, 70], [300, 1]] {
        let x: Vec<f32> = normal(5, tokens * columns)
            .iter()
            .map(|x| x + 2.0)
            .collect();
        let view = MatrixView::new(&x, tokens, columns).unwrap();
        let mean = token_mean(view, Contraction::Rows);
        let rest = without_mean(view, Contraction::Rows, &mean);
        let dense = matrix(&x, [tokens, columns], &device);
        let turned: Vec<f32> = (0..tokens * columns)
            .map(|i| x[i % tokens * columns + i / tokens])
            .collect();
        let mut transposed = matrix(&turned, [columns, tokens], &device);
        *transposed.meta.shape_mut() = vec![tokens, columns].into();
        *transposed.meta.strides_mut() = vec![1, tokens].into();
        for tensor in [dense, transposed] {
            let (got_rest, got_mean) = split_token_mean(&tensor);
            assert_eq!(&got_mean.meta.shape()[..], [1, columns]);
            assert_eq!(&got_rest.meta.shape()[..], [tokens, columns]);
            let difference = first_difference(&bits(&download(&got_mean)), &bits(&mean));
            assert_eq!(difference, None, "mean of {tokens} x {columns}");
            let difference = first_difference(&bits(&download(&got_rest)), &bits(&rest));
            assert_eq!(difference, None, "rest of {tokens} x {columns}");
        }
    }
}

#[test]
fn the_rest_keeps_the_dtype_of_the_tensor() {
    let Some(device) = device() else { return };
    if !supports(DType::BF16) {
        return;
    }
    let [tokens, columns] = [200, 24];
    let x: Vec<bf16> = normal(5, tokens * columns)
        .into_iter()
        .map(bf16::from_f32)
        .collect();
    let view = MatrixView::new(&x, tokens, columns).unwrap();
    let mean = token_mean(view, Contraction::Rows);
    let rest = without_mean(view, Contraction::Rows, &mean);
    let rest: Vec<bf16> = rest.into_iter().map(bf16::from_f32).collect();
    let tensor = upload(TensorData::new(x.clone(), [tokens, columns]), &device);
    let (got, got_mean) = split_token_mean(&tensor);
    assert_eq!(bits(&download(&got_mean)), bits(&mean));
    assert_eq!(download::<bf16>(&got), rest);
}
