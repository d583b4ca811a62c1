//! What `export` writes of a run: the weights that its forward multiplies, but for those that
//! servers fuse.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use burn::backend::{Autodiff, NdArray};
use burn::tensor::TensorData;
use burn_nvfp4::Nvfp4;
use burn_nvfp4::cpu::{Contraction, MatrixView, quantize_with_amax, tensor_amax};
use burn_nvfp4::export::{ServingFormat, served};
use burn_nvfp4::recipe::{Policy, Progress, Recipe, ScaleRenewal, presets};
use burn_nvfp4::rng::{RandomKey, Stream};
use burn_nvfp4_models::checkpoint::hf::hf_key;
use burn_nvfp4_models::checkpoint::run::NamedTensors;
use burn_nvfp4_models::config::hf::StoredFloat;
use burn_nvfp4_models::hybrid::init::initial_values;
use burn_nvfp4_models::serving::{
    ExportOptions, Exported, Force, ServingError, TrainedRun, export_run,
};
use burn_nvfp4_models::train::numerics::Quantized;
use safetensors::SafeTensors;

use super::*;
use crate::device::exclusive;

type B = Nvfp4<Autodiff<NdArray>>;

const FORMAT: ServingFormat = ServingFormat::Modelopt;

fn paper(recipe: Recipe) -> Policy {
    Policy::paper(recipe)
        .with_blocks(tiny().n_blocks())
        .unwrap()
}

/// The tiny model before its first step.
fn initial() -> NamedTensors {
    let specs = tiny().params().into_iter();
    let parameters = specs.map(|spec| {
        let values = initial_values(&spec, 3);
        (spec.name, TensorData::new(values, spec.shape))
    });
    parameters.collect()
}

/// Exports what a run has, as a forward of `step` multiplies it.
fn export_to(
    output: &Path,
    (parameters, carried): (&NamedTensors, &NamedTensors),
    policy: &Policy,
    step: u64,
) -> Result<Exported, ServingError> {
    let run = TrainedRun {
        config: &tiny(),
        parameters,
        carried,
        policy,
        progress: Progress { step, total: 12 },
    };
    let options = ExportOptions {
        format: Some(FORMAT),
        stored: StoredFloat::F32,
        force: Force::Refuse,
    };
    export_run(&run, output, &options)
}

/// What was done, and the bytes of every tensor.
fn export(
    of_run: (&NamedTensors, &NamedTensors),
    policy: &Policy,
    step: u64,
) -> (Exported, BTreeMap<String, Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let done = export_to(&output, of_run, policy, step).unwrap();
    let bytes = std::fs::read(output.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter();
    let tensors = tensors.map(|(name, view)| (name.to_owned(), view.data().to_vec()));
    (done, tensors.collect())
}

fn own_amax(parameters: &NamedTensors, layer: &str) -> f32 {
    let weight = &parameters[&format!("{layer}.weight")];
    tensor_amax(weight.as_slice::<f32>().unwrap())
}

/// Checks that a weight was written as the specification quantizes it under `amax`.
fn check(tensors: &BTreeMap<String, Vec<u8>>, parameters: &NamedTensors, layer: &str, amax: f32) {
    let weight = &parameters[&format!("{layer}.weight")];
    let shape = weight.shape.to_vec();
    let view = MatrixView::new(weight.as_slice::<f32>().unwrap(), shape[0], shape[1]).unwrap();
    let key = RandomKey {
        seed: 0,
        step: 0,
        micro_batch: 0,
        stream: Stream::Other(0),
    };
    let spec = presets::NVIDIA.fprop.rhs;
    let packed = quantize_with_amax(view, Contraction::Rows, &spec, amax, key).unwrap();
    let packed = served(&packed).unwrap();
    let parts = FORMAT.split(&packed).unwrap();
    let scale = parts.tensor.to_le_bytes();
    let expected: [&[u8]; 3] = [parts.codes, parts.scales, &scale];
    for (suffix, expected) in FORMAT.suffixes().into_iter().zip(expected) {
        let key = format!("{}.{suffix}", hf_key(layer));
        assert!(tensors[&key] == expected, "{key} under {amax}");
    }
}

fn fused() -> [String; 3] {
    ["q_proj", "k_proj", "v_proj"].map(|name| format!("layers.2.mixer.{name}"))
}

/// Servers run the three as one GEMM under the largest of their tensor scales: with one of its own
/// each, two of them came out too large.
#[test]
fn fused_projections_share_a_tensor_scale_and_all_else_is_what_forward_multiplies() {
    let (parameters, policy) = (initial(), paper(presets::NVIDIA));
    let (done, tensors) = export((&parameters, &NamedTensors::new()), &policy, 0);
    let amaxes = fused().map(|layer| own_amax(&parameters, &layer));
    let joint = amaxes.into_iter().fold(0.0, f32::max);
    assert_eq!(amaxes.iter().filter(|amax| **amax < joint).count(), 2);
    let scales = fused().map(|layer| &tensors[&format!("{}.weight_scale_2", hf_key(&layer))]);
    assert_eq!(scales[0], scales[1]);
    assert_eq!(scales[0], scales[2]);
    let start = Progress { step: 0, total: 12 };
    let mut quantized = 0;
    for layer in tiny().linear_names() {
        if policy.resolve(Some(&layer), start).is_quantized() {
            let own = own_amax(&parameters, &layer);
            let amax = if fused().contains(&layer) { joint } else { own };
            check(&tensors, &parameters, &layer, amax);
            quantized += 1;
        }
    }
    assert_eq!((done.quantized, done.fused), (quantized, 3));
    assert!(quantized > 3);
}

/// They were quantized under their own amaxes, which are not those that fprop multiplied under.
#[test]
fn a_run_that_renews_its_scales_is_exported_under_the_amaxes_that_it_keeps() {
    let _device = exclusive();
    let place = Place::new();
    let policy = paper(Recipe {
        scale_renewal: ScaleRenewal::EverySteps(NonZeroU32::new(4).unwrap()),
        ..presets::NVIDIA
    });
    let numerics = Quantized::<B>::new(Default::default(), policy.clone(), 7).unwrap();
    let run = place.run("run", shape(2, 32, 1));
    run.go::<B>(Box::new(numerics), None, &Interrupter::new())
        .unwrap();
    let checkpoint = run.directory.load(None).unwrap();
    assert_eq!(checkpoint.step(), 8);
    let (parameters, carried) = (&checkpoint.parameters, &checkpoint.carried);
    let kept = |layer: &str| {
        let kept = &carried[&format!("numerics.{layer}.fprop.rhs")];
        kept.as_slice::<f32>().unwrap()[0]
    };
    // The last step is under what step 4 has taken.
    let (_, tensors) = export((parameters, carried), &policy, 7);
    let single = ["layers.0.mixer.in_proj", "layers.1.mixer.up_proj"];
    for layer in single {
        assert_ne!(kept(layer), own_amax(parameters, layer), "{layer}");
        check(&tensors, parameters, layer, kept(layer));
    }
    let joint = fused().map(|layer| kept(&layer));
    let joint = joint.into_iter().fold(0.0, f32::max);
    for layer in fused() {
        check(&tensors, parameters, &layer, joint);
    }
    // A step that renews takes the amax of what it reads.
    let (_, tensors) = export((parameters, carried), &policy, 8);
    for layer in single {
        check(&tensors, parameters, layer, own_amax(parameters, layer));
    }
}

/// K and V under a rule that maps amaxes to another bound cannot have the tensor scale of Q.
#[test]
fn what_servers_cannot_run_as_trained_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let parameters = initial();
    let refused = |recipe: Recipe, pattern: &str| {
        let policy = paper(presets::NVIDIA).with_override(pattern, recipe);
        let of_run = (&parameters, &NamedTensors::new());
        let done = export_to(&dir.path().join("out"), of_run, &policy.unwrap(), 0);
        done.unwrap_err().to_string()
    };
    let message = refused(presets::FOUR_OVER_SIX, "*.v_proj");
    assert!(message.contains("v_proj.weight"), "{message}");
    assert!(message.contains("one tensor scale"), "{message}");
    let rotated = Recipe {
        fprop: presets::NVIDIA_NO_SR.wgrad,
        ..presets::NVIDIA
    };
    let message = refused(rotated, "*.up_proj");
    assert!(message.contains("up_proj.weight"), "{message}");
    assert!(message.contains("Hadamard"), "{message}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_export_keeps_off_what_lies_beside_its_output() {
    let dir = tempfile::tempdir().unwrap();
    let (parameters, policy) = (initial(), paper(presets::NVIDIA));
    let of_run = (&parameters, &NamedTensors::new());
    for beside in ["out.part", "out.old.part"] {
        let beside = dir.path().join(beside);
        std::fs::create_dir(&beside).unwrap();
        let error = export_to(&dir.path().join("out"), of_run, &policy, 0).unwrap_err();
        assert!(matches!(error, ServingError::InTheWay { .. }), "{error}");
        std::fs::remove_dir(&beside).unwrap();
    }
    export_to(&dir.path().join("out/"), of_run, &policy, 0).unwrap();
    assert!(dir.path().join("out/config.json").is_file());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
