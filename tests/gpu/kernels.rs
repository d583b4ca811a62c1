//! The kernels against `cpu`, bit by bit: codes, scales, amaxes and decoded operands.

use burn::tensor::TensorData;
use burn_nvfp4::cpu::{self, Contraction, MatrixView};
use burn_nvfp4::kernels::CubeTensor;
use burn_nvfp4::kernels::dequantize::to_host;
use burn_nvfp4::kernels::quantize::{Job, quantize};
use burn_nvfp4::recipe::{BlockShape, OperandSpec, Rounding, ScaleRule, Transform};
use burn_nvfp4::rng::{RandomKey, Stream, philox4x32_10};

use crate::device::{Runtime, device, download, upload};

const KEY: RandomKey = RandomKey {
    seed: 0x0123_4567_89AB_CDEF,
    step: 0x0FED_CBA9_8765,
    stream: Stream::Wgrad,
};
const ROW16: OperandSpec = OperandSpec::Nvfp4 {
    block: BlockShape::Row16,
    scale: ScaleRule::Tensor,
    rounding: Rounding::NearestEven,
    transform: Transform::None,
};

fn normal(seed: u32, n: usize) -> Vec<f32> {
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    let pair = |u: u32, v: u32| {
        let (radius, angle) = (
            (-2.0 * unit(u).ln()).sqrt(),
            std::f64::consts::TAU * unit(v),
        );
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    };
    let blocks = (0u32..).flat_map(|block| {
        let [a, b, c, d] = philox4x32_10([block, 0, 0, 0], [seed, 0]);
        [pair(a, b), pair(c, d)]
    });
    blocks.flatten().take(n).collect()
}

#[test]
fn first() {
    let Some(device) = device() else { return };
    for (rows, cols) in [(16, 32), (3, 17), (130, 257)] {
        let x = normal(1, rows * cols);
        let t = upload(TensorData::new(x.clone(), [rows, cols]), &device);
        for along in [Contraction::Columns, Contraction::Rows] {
            let job = Job {
                spec: ROW16,
                along,
                key: KEY,
                packed: true,
                decoded: Some(burn::tensor::DType::F32),
            };
            let got = quantize::<Runtime>(&t, &[job], None).remove(0);
            let expected =
                cpu::quantize(MatrixView::new(&x, rows, cols).unwrap(), along, &ROW16, KEY)
                    .unwrap();
            let packed = to_host(&got.packed.unwrap());
            assert_eq!(packed.tensor_scale(), expected.tensor_scale());
            assert_eq!(
                packed.block_scales(),
                expected.block_scales(),
                "{rows} {cols} {along:?}"
            );
            assert_eq!(packed.codes(), expected.codes());
            let decoded: Vec<f32> = download(&got.decoded.unwrap().values);
            println!("{:?}", &decoded[..4]);
        }
    }
}
