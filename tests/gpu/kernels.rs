//! The kernels against `cpu`, bit by bit: codes, scales, amaxes and decoded operands.

use burn::tensor::{DType, TensorData};
use burn_nvfp4::cpu::{self, Contraction, Element, MatrixView, decode_operand};
use burn_nvfp4::format::{PackedMatrix, Reading};
use burn_nvfp4::kernels::dequantize::{decode, dequantize, from_host, to_host};
use burn_nvfp4::kernels::quantize::{Job, Packing, Quantized, Watch, quantize, quantize_under};
use burn_nvfp4::kernels::{CubeTensor, DecodedTensor};
use burn_nvfp4::recipe::{BlockShape, Fp8Scaling, OperandSpec, Rounding, ScaleRule, Transform};
use burn_nvfp4::rng::{RandomKey, Stream};
use half::{bf16, f16};

use crate::device::{Device, Runtime, device, download, supports, upload};

mod data;
mod decode;
mod golden;
mod mean;
mod units;

use data::{AXES, EDEN, KEY, MXFP4, ROW16, SPECS, STOCHASTIC, TILE, fp8, hard_data, normal, nvfp4};

fn expected<E: Element>(x: &[E], shape: [usize; 2], job: &Job) -> PackedMatrix {
    let view = MatrixView::new(x, shape[0], shape[1]).unwrap();
    cpu::quantize(view, job.along, &job.spec, job.key).unwrap()
}

fn job(spec: OperandSpec, along: Contraction) -> Job {
    Job {
        spec,
        along,
        key: KEY,
        packing: Packing::EitherAxis,
        decoded: Some(DType::F32),
    }
}

/// Bits, all NaNs alike.
fn bits(values: &[f32]) -> Vec<u32> {
    let bits = |x: &f32| if x.is_nan() { 0x7FC0_0000 } else { x.to_bits() };
    values.iter().map(bits).collect()
}

fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols)
        .map(|i| x[i % rows * cols + i / rows])
        .collect()
}

fn first_difference<T: PartialEq + std::fmt::Debug>(got: &[T], expected: &[T]) -> Option<String> {
    if got.len() != expected.len() {
        return Some(format!("{} instead of {}", got.len(), expected.len()));
    }
    let differ = |(g, e): &(&T, &T)| g != e;
    let n = got.iter().zip(expected).filter(differ).count();
    let i = got.iter().zip(expected).position(|pair| differ(&pair))?;
    let (got, expected) = (&got[i], &expected[i]);
    Some(format!(
        "{n} differ, first [{i}]: {got:?}, not {expected:?}"
    ))
}

fn compare_packed(
    got: &PackedMatrix,
    expected: &PackedMatrix,
    problems: &mut Vec<String>,
    case: &str,
) {
    let amaxes = |matrix: &PackedMatrix| bits(&matrix.tensor_scale().amax);
    if let Some(difference) = first_difference(&amaxes(got), &amaxes(expected)) {
        problems.push(format!("{case}: amax: {difference}"));
    }
    if got.block_scales() != expected.block_scales() {
        let scales = |matrix: &PackedMatrix| matrix.row_block_scales().to_vec();
        let difference = first_difference(&scales(got), &scales(expected));
        problems.push(format!("{case}: scales: {difference:?}"));
    }
    if let Some(difference) = first_difference(got.codes(), expected.codes()) {
        problems.push(format!("{case}: codes: {difference}"));
    }
    let of = |matrix: &PackedMatrix| (matrix.rows(), matrix.k(), matrix.tensor_scale().q_max);
    if of(got) != of(expected) {
        problems.push(format!(
            "{case}: {:?} instead of {:?}",
            of(got),
            of(expected)
        ));
    }
}

fn compare_decoded(
    decoded: &DecodedTensor<Runtime>,
    job: &Job,
    expected: &PackedMatrix,
    problems: &mut Vec<String>,
    case: &str,
) {
    let (rows, k, padded_k) = (expected.rows(), expected.k(), expected.padded_k());
    let kept = if job.spec.transform() == Transform::None {
        k
    } else {
        padded_k
    };
    let operand = decode_operand(expected);
    let rows_of = operand
        .chunks(padded_k)
        .flat_map(|row| &row[..kept])
        .copied();
    let mut values: Vec<f32> = rows_of.collect();
    let mut shape = [rows, kept];
    if decoded.along == Contraction::Rows {
        values = transpose(&values, rows, kept);
        shape = [kept, rows];
    }
    assert_eq!(&decoded.values.meta.shape()[..], shape, "{case}");
    let got: Vec<f32> = match decoded.values.dtype {
        DType::BF16 => download::<bf16>(&decoded.values)
            .iter()
            .map(|x| x.to_f32())
            .collect(),
        _ => download(&decoded.values),
    };
    if let Some(difference) = first_difference(&bits(&got), &bits(&values)) {
        problems.push(format!("{case}: decoded: {difference}"));
    }
    let scale = expected.tensor_scale();
    assert_eq!(decoded.q_max, scale.q_max, "{case}");
    let amax = decoded.amax.as_ref().map_or(vec![1.0], download::<f32>);
    if let Some(difference) = first_difference(&bits(&amax), &bits(&scale.amax)) {
        problems.push(format!("{case}: amax of decoded: {difference}"));
    }
}

/// Everything that one job gave, against `cpu`.
fn compare(
    got: &Quantized<Runtime>,
    job: &Job,
    expected: &PackedMatrix,
    problems: &mut Vec<String>,
    case: &str,
) {
    assert_eq!(
        (got.packed.is_some(), got.decoded.is_some()),
        (job.packing != Packing::None, job.decoded.is_some())
    );
    if let Some(packed) = &got.packed {
        let host = to_host(packed);
        let host = match got.reading {
            Reading::AsPacked => host,
            Reading::Transposed => host.transpose().unwrap(),
        };
        compare_packed(&host, expected, problems, case);
    }
    if let Some(decoded) = &got.decoded {
        compare_decoded(decoded, job, expected, problems, case);
    }
}

fn done(problems: &[String]) {
    let shown = problems
        .iter()
        .take(40)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(problems.is_empty(), "{} problems:\n{shown}", problems.len());
}

fn matrix(x: &[f32], shape: [usize; 2], device: &Device) -> CubeTensor<Runtime> {
    upload(TensorData::new(x.to_vec(), shape), device)
}

/// One job after the other on one tensor.
fn check(x: &[f32], shape: [usize; 2], jobs: &[Job], device: &Device, problems: &mut Vec<String>) {
    let tensor = matrix(x, shape, device);
    for job in jobs {
        let case = format!("{shape:?} {:?} {:?}", job.along, job.spec);
        let got = quantize(&tensor, &[*job], None).remove(0);
        compare(&got, job, &expected(x, shape, job), problems, &case);
    }
}

#[test]
fn every_spec_has_the_bits_of_the_cpu_on_awkward_shapes() {
    let Some(device) = device() else { return };
    let mut problems = Vec::new();
    for shape in [
        [33, 101],
        [130, 257],
        [3, 17],
        [1, 1],
        [64, 256],
        [16, 16],
        [128, 576],
    ] {
        let x = normal(1, shape[0] * shape[1]);
        let jobs = SPECS
            .into_iter()
            .flat_map(|spec| AXES.map(|along| job(spec, along)));
        check(&x, shape, &jobs.collect::<Vec<_>>(), &device, &mut problems);
    }
    done(&problems);
}

#[test]
fn hard_data_has_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    let mut problems = Vec::new();
    let shape = [32, 128];
    for (name, x) in hard_data(shape[0] * shape[1]) {
        let before = problems.len();
        let jobs = SPECS
            .into_iter()
            .flat_map(|spec| AXES.map(|along| job(spec, along)));
        check(&x, shape, &jobs.collect::<Vec<_>>(), &device, &mut problems);
        for problem in &mut problems[before..] {
            problem.insert_str(0, &format!("{name}: "));
        }
    }
    done(&problems);
}

#[test]
fn other_shapes_and_outputs_have_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    let mut problems = Vec::new();
    for shape in [
        [1, 16],
        [16, 1],
        [33, 100],
        [17, 34],
        [64, 4096],
        [300, 1000],
    ] {
        let x = normal(2, shape[0] * shape[1]);
        for along in AXES {
            let spec = if along == Contraction::Rows {
                STOCHASTIC.with_hadamard()
            } else {
                ROW16
            };
            let whole = job(spec, along);
            let packed = Job {
                decoded: None,
                ..whole
            };
            let decoded = Job {
                packing: Packing::None,
                ..whole
            };
            check(&x, shape, &[packed, decoded], &device, &mut problems);
        }
    }
    done(&problems);
}

#[test]
fn half_precision_sources_and_results_have_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    let mut problems = Vec::new();
    for shape in [[64, 256], [33, 102]] {
        let x = normal(3, shape[0] * shape[1]);
        for spec in [
            ROW16,
            STOCHASTIC.with_hadamard(),
            EDEN,
            TILE,
            MXFP4,
            fp8(Fp8Scaling::Tensor),
        ] {
            for along in AXES {
                let case = format!("{shape:?} {along:?} {spec:?}");
                let mut job = job(spec, along);
                if supports(DType::BF16) {
                    job.decoded = Some(DType::BF16);
                    let x: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
                    let tensor = upload(TensorData::new(x.clone(), shape), &device);
                    let got = quantize(&tensor, &[job], None).remove(0);
                    let case = format!("bf16 {case}");
                    compare(&got, &job, &expected(&x, shape, &job), &mut problems, &case);
                }
                if supports(DType::F16) {
                    job.decoded = Some(DType::F32);
                    let x: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
                    let tensor = upload(TensorData::new(x.clone(), shape), &device);
                    let got = quantize(&tensor, &[job], None).remove(0);
                    let case = format!("f16 {case}");
                    compare(&got, &job, &expected(&x, shape, &job), &mut problems, &case);
                }
            }
        }
    }
    done(&problems);
}

#[test]
fn two_jobs_give_what_each_gives_alone() {
    let Some(device) = device() else { return };
    let rotated = STOCHASTIC.with_hadamard();
    let (columns, rows) = (Contraction::Columns, Contraction::Rows);
    let pairs = [
        (ROW16, columns, ROW16.with_hadamard(), rows),
        (STOCHASTIC, columns, rotated, rows),
        (TILE, columns, TILE, rows),
        (ROW16, columns, ROW16.with_hadamard(), columns),
        (rotated, rows, MXFP4.with_hadamard(), columns),
        (EDEN, columns, EDEN, rows),
        (MXFP4, rows, fp8(Fp8Scaling::Row128), columns),
        (
            nvfp4(BlockShape::Row16, ScaleRule::Row),
            columns,
            TILE.with_rounding(Rounding::Stochastic),
            rows,
        ),
        (
            rotated,
            rows,
            ROW16.with_transform(Transform::Hadamard {
                signs: burn_nvfp4::recipe::SignVector::PLAIN,
            }),
            rows,
        ),
    ];
    let mut problems = Vec::new();
    for shape in [[130, 257], [64, 256]] {
        let x = normal(4, shape[0] * shape[1]);
        let tensor = matrix(&x, shape, &device);
        for (a, along_a, b, along_b) in pairs {
            let b = Job {
                decoded: None,
                key: RandomKey {
                    stream: Stream::Dgrad,
                    ..KEY
                },
                ..job(b, along_b)
            };
            let jobs = [job(a, along_a), b];
            for (got, job) in quantize(&tensor, &jobs, None).iter().zip(&jobs) {
                let case = format!("{shape:?} {:?} {:?} of {jobs:?}", job.along, job.spec);
                compare(got, job, &expected(&x, shape, job), &mut problems, &case);
            }
        }
    }
    done(&problems);
}

/// Amaxes of another step: smaller ones, where blocks and elements saturate, and larger ones.
#[test]
fn an_amax_that_is_given_has_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    let mut problems = Vec::new();
    let shape = [130, 257];
    let x = normal(6, shape[0] * shape[1]);
    let tensor = matrix(&x, shape, &device);
    let view = MatrixView::new(&x, shape[0], shape[1]).unwrap();
    let specs = SPECS.into_iter().filter(OperandSpec::has_renewable_scale);
    for (spec, along) in specs.flat_map(|spec| AXES.map(|along| (spec, along))) {
        let job = job(spec, along);
        for amax in [0.01, 1.5, 60.0] {
            let given = Some(upload(TensorData::from([amax]), &device));
            let expected = cpu::quantize_with_amax(view, along, &spec, amax, job.key).unwrap();
            let case = format!("{amax} {along:?} {spec:?}");
            let got = quantize_under(&tensor, &[job], std::slice::from_ref(&given), None, None);
            compare(&got[0], &job, &expected, &mut problems, &case);
            // Beside a job that takes its own.
            let own = super::kernels::job(ROW16, Contraction::Columns);
            let got = quantize_under(&tensor, &[own, job], &[None, given], None, None);
            let expected_own = super::kernels::expected(&x, shape, &own);
            compare(&got[0], &own, &expected_own, &mut problems, &case);
            compare(&got[1], &job, &expected, &mut problems, &case);
        }
    }
    done(&problems);
}

#[test]
fn views_are_read_as_what_they_show() {
    let Some(device) = device() else { return };
    let (rows, cols) = (48, 80);
    let x = normal(5, rows * cols);
    let dense = matrix(&x, [rows, cols], &device);
    let view = |shape: &[usize], strides: &[usize], skip: usize| {
        let mut tensor = dense.clone();
        *tensor.meta.shape_mut() = shape.to_vec().into();
        *tensor.meta.strides_mut() = strides.to_vec().into();
        if skip > 0 {
            tensor.handle = tensor.handle.offset_start(4 * skip as u64);
        }
        tensor
    };
    let pick = |shape: &[usize], strides: &[usize], skip: usize| -> Vec<f32> {
        let n: usize = shape.iter().product();
        let at = |mut i: usize| {
            let axes = shape.iter().zip(strides).rev();
            axes.fold(skip, |at, (len, stride)| {
                let here = at + i % len * stride;
                i /= len;
                here
            })
        };
        (0..n).map(|i| x[at(i)]).collect()
    };
    let mut problems = Vec::new();
    for (name, shape, strides, skip) in [
        ("transposed", vec![cols, rows], vec![1, cols], 0),
        ("slice of columns", vec![rows, 33], vec![cols, 1], 0),
        ("slice of rows", vec![20, cols], vec![cols, 1], 16 * cols),
        ("transposed slice", vec![33, rows], vec![1, cols], 0),
        ("batch", vec![3, 16, cols], vec![16 * cols, cols, 1], 0),
        (
            "swapped batch",
            vec![16, 3, cols],
            vec![cols, 16 * cols, 1],
            0,
        ),
        (
            "batch of transposes",
            vec![3, cols, 16],
            vec![16 * cols, 1, cols],
            0,
        ),
        ("every other row", vec![24, cols], vec![2 * cols, 1], 0),
        ("broadcast", vec![7, cols], vec![0, 1], 0),
        ("vector", vec![cols], vec![1], 0),
    ] {
        let values = pick(&shape, &strides, skip);
        let tensor = view(&shape, &strides, skip);
        let cols = *shape.last().unwrap();
        let flat = [values.len() / cols, cols];
        for spec in [ROW16, STOCHASTIC.with_hadamard(), EDEN, TILE] {
            for along in AXES {
                let job = job(spec, along);
                let got = quantize(&tensor, &[job], None).remove(0);
                let case = format!("{name} {along:?} {spec:?}");
                compare(
                    &got,
                    &job,
                    &expected(&values, flat, &job),
                    &mut problems,
                    &case,
                );
            }
        }
    }
    done(&problems);
}

#[test]
fn empty_tensors_quantize_to_nothing() {
    let Some(device) = device() else { return };
    for shape in [[0, 16], [3, 0]] {
        let tensor = matrix(&[], shape, &device);
        for spec in SPECS {
            let job = job(spec, Contraction::Columns);
            let got = quantize(&tensor, &[job, job], None)
                .remove(0)
                .packed
                .unwrap();
            assert_eq!(
                to_host(&got),
                expected::<f32>(&[], shape, &job),
                "{shape:?} {spec:?}"
            );
        }
    }
}

#[test]
fn packed_tensors_decode_as_the_cpu_does() {
    let Some(device) = device() else { return };
    let mut problems = Vec::new();
    for shape in [[33, 101], [64, 256]] {
        let x = normal(6, shape[0] * shape[1]);
        for spec in SPECS {
            let job = job(spec, Contraction::Columns);
            let host = expected(&x, shape, &job);
            let packed = from_host::<Runtime>(&host, &device);
            let case = format!("{shape:?} {spec:?}");
            compare_packed(
                &to_host(&packed),
                &host,
                &mut problems,
                &format!("{case} and back"),
            );
            let values: Vec<f32> = download(&dequantize(&packed));
            if let Some(d) = first_difference(&bits(&values), &bits(&cpu::dequantize(&host))) {
                problems.push(format!("{case}: dequantize: {d}"));
            }
            let decoded = decode(&packed, DType::F32);
            let rows: Vec<f32> = download(&decoded.values);
            let width = decoded.values.meta.shape()[1];
            let rows: Vec<f32> = rows
                .chunks(width)
                .flat_map(|row| &row[..host.padded_k()])
                .copied()
                .collect();
            if let Some(d) = first_difference(&bits(&rows), &bits(&decode_operand(&host))) {
                problems.push(format!("{case}: decode: {d}"));
            }
        }
    }
    done(&problems);
}

#[test]
fn a_watch_names_the_first_tensor_that_is_not_finite() {
    let Some(device) = device() else { return };
    let found = upload(TensorData::new(vec![u32::MAX], [1]), &device);
    let shape = [40, 72];
    let fine = normal(8, shape[0] * shape[1]);
    let mut steps = Vec::new();
    for (id, spec) in SPECS.into_iter().enumerate() {
        let along = AXES[id % 2];
        let mut x = fine.clone();
        let value = match id % 4 {
            0 => None,
            1 => Some(f32::NAN),
            2 => Some(f32::INFINITY),
            _ => Some(-f32::NAN),
        };
        if let Some(value) = value {
            *x.last_mut().unwrap() = value;
        }
        steps.push((id, job(spec, along), x, value.is_some()));
    }
    let mut expected_found = u32::MAX;
    for (id, job, x, is_bad) in &steps {
        let id = u32::try_from(*id).unwrap();
        let watch = Watch {
            found: found.clone(),
            id,
        };
        let tensor = matrix(x, shape, &device);
        let got = quantize(&tensor, &[*job], Some(&watch)).remove(0);
        let mut problems = Vec::new();
        compare(
            &got,
            job,
            &expected(x, shape, job),
            &mut problems,
            "watched",
        );
        done(&problems);
        if *is_bad && expected_found == u32::MAX {
            expected_found = id;
        }
        assert_eq!(download::<u32>(&found), [expected_found], "{:?}", job.spec);
    }
    // Each spec finds it alone, too.
    for (id, job, x, is_bad) in &steps {
        let found = upload(TensorData::new(vec![u32::MAX], [1]), &device);
        let id = u32::try_from(*id).unwrap();
        let watch = Watch {
            found: found.clone(),
            id,
        };
        drop(quantize(&matrix(x, shape, &device), &[*job], Some(&watch)));
        let expected = if *is_bad { id } else { u32::MAX };
        assert_eq!(download::<u32>(&found), [expected], "{:?}", job.spec);
    }
}
