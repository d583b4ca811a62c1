//! What stands between the two projections of a Mamba-2 mixer, as one operation.
//!
//! 1. `z, x B C, dt` are slices of the projected tokens; nothing is copied.
//! 2. `x B C = silu(causal_conv(x B C))`; 3. `dt = clamp(softplus(dt + dt_bias))`;
//! 4. the scan; 5. `group_norm(y * silu(z)) * weight`.
//!
//! One operation, because the gradients of the slices are then written into one buffer instead of
//! being padded with zeros and added up, and because backward can run the convolution again instead
//! of keeping what it made. It keeps dt, y, the norms and the states between chunks.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_std::Metadata;

use super::elementwise::empty;
use super::gated_group_norm::Inputs as NormInputs;
use super::ssd::{SsdForward, SsdGrads, SsdInputs, SsdShape, saved_shapes};
use super::step_size::Limits;
use super::{conv_silu, gated_group_norm, ssd, step_size};
use crate::op::{Like, MixerShape};

/// Inputs without a bias of the convolution.
const PARAMETERS: usize = 6;
/// What forward makes beside its result, before what the scan saves: dt, y, and the norms.
const OWN: usize = 3;

/// True if there are kernels for inputs like these.
pub(super) fn takes(shape: MixerShape, inputs: &[Like]) -> bool {
    scan(shape, &inputs[0].0).is_some_and(|scan| scan.check().is_ok())
}

/// The lengths of the scan over projected tokens, if they are those of the mixer.
fn scan(shape: MixerShape, projected: &Shape) -> Option<SsdShape> {
    match projected.dims::<3>() {
        [batch, seq, width] if width == shape.projected() => Some(SsdShape {
            batch,
            seq,
            heads: shape.n_heads,
            head_dim: shape.head_dim,
            groups: shape.n_groups,
            d_state: shape.d_state,
            chunk_len: shape.chunk_len,
        }),
        _ => None,
    }
}

fn expected(shape: MixerShape, projected: &Shape) -> SsdShape {
    scan(shape, projected).unwrap_or_else(|| {
        let width = shape.projected();
        panic!("the projected tokens of a mixer have {width} channels, not {projected:?}")
    })
}

/// What forward makes of inputs like these.
pub(super) fn outputs(shape: MixerShape, inputs: &[Like]) -> Vec<Like> {
    let (projected, dtype) = &inputs[0];
    let scan = expected(shape, projected);
    let tokens = [scan.batch, scan.seq];
    let channels = |count| Shape::new([tokens[0], tokens[1], count]);
    let inner = (channels(shape.d_inner()), *dtype);
    let rstd = Shape::new([tokens[0] * tokens[1], shape.n_groups]);
    let own = [
        inner.clone(),
        (channels(shape.n_heads), DType::F32),
        inner,
        (rstd, DType::F32),
    ];
    let saved = saved_shapes(&scan, *dtype).into_iter();
    let saved = saved.map(|(dims, dtype)| (Shape::from(dims), dtype));
    own.into_iter().chain(saved).collect()
}

/// The inputs of forward among those of backward.
pub(super) fn parameters<T>(inputs: &[T]) -> impl Iterator<Item = &T> {
    // Everything else is what forward made, and the gradient of its result.
    let others = OWN + SAVED + 1;
    inputs[..inputs.len() - others].iter()
}

/// Tensors that the scan saves.
const SAVED: usize = 3;

/// The tensors of a mixer, as its parts want them.
struct Parts<R: CubeRuntime> {
    shape: MixerShape,
    scan: SsdShape,
    projected: CubeTensor<R>,
    conv_weight: CubeTensor<R>,
    conv_bias: Option<CubeTensor<R>>,
    dt_bias: CubeTensor<R>,
    a_log: CubeTensor<R>,
    d_skip: CubeTensor<R>,
    norm_weight: CubeTensor<R>,
}

/// The slices of projected tokens, or of their gradient.
struct Slices<R: CubeRuntime> {
    z: CubeTensor<R>,
    xbc: CubeTensor<R>,
    dt: CubeTensor<R>,
}

impl<R: CubeRuntime> Parts<R> {
    fn new(inputs: Vec<CubeTensor<R>>, shape: MixerShape) -> Self {
        let count = inputs.len();
        assert!(
            (PARAMETERS..=PARAMETERS + 1).contains(&count),
            "a mixer takes {PARAMETERS} tensors and perhaps a bias, not {count}"
        );
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().expect("as many as were counted");
        let projected = into_contiguous(next());
        Self {
            shape,
            scan: expected(shape, projected.meta.shape()),
            projected,
            conv_weight: next(),
            dt_bias: next(),
            a_log: next(),
            d_skip: next(),
            norm_weight: next(),
            conv_bias: inputs.next(),
        }
    }

    fn slices(&self, of: &CubeTensor<R>) -> Slices<R> {
        let (inner, conv) = (self.shape.d_inner(), self.shape.conv_dim());
        Slices {
            z: channels(of, 0, inner),
            xbc: channels(of, inner, conv),
            dt: channels(of, inner + conv, self.shape.n_heads),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "kernels compute in f32")]
    fn limits(&self) -> Limits {
        Limits {
            min: self.shape.dt_min as f32,
            max: self.shape.dt_max.map(|max| max as f32),
        }
    }

    /// Step 2.
    fn convolved(&self, slices: &Slices<R>) -> CubeTensor<R> {
        conv_silu::forward(&slices.xbc, &self.conv_weight, self.conv_bias.as_ref())
    }

    fn scan_inputs(&self, xbc: CubeTensor<R>, dt: CubeTensor<R>) -> SsdInputs<R> {
        SsdInputs {
            xbc,
            dt,
            a_log: self.a_log.clone(),
            d_skip: self.d_skip.clone(),
        }
    }

    fn norm<'a>(&'a self, y: &'a CubeTensor<R>, slices: &'a Slices<R>) -> NormInputs<'a, R> {
        NormInputs {
            y,
            z: &slices.z,
            weight: &self.norm_weight,
            n_groups: self.shape.n_groups,
            eps: self.shape.norm_eps,
        }
    }
}

/// Channels of `[batch, seq, channels]`, in place.
fn channels<R: CubeRuntime>(of: &CubeTensor<R>, start: usize, count: usize) -> CubeTensor<R> {
    let [batch, seq, _]: [usize; 3] = of.meta.shape().dims();
    let mut slice = of.clone();
    let before = slice.handle.offset_start.unwrap_or(0);
    slice.handle.offset_start = Some(before + (start * of.dtype.size()) as u64);
    slice.meta = Box::new(Metadata::new(
        Shape::new([batch, seq, count]),
        of.meta.strides().clone(),
    ));
    slice
}

/// The result, dt, y, the norms, and what the scan saves.
pub(super) fn forward<R: CubeRuntime>(
    inputs: Vec<CubeTensor<R>>,
    shape: MixerShape,
) -> Vec<CubeTensor<R>> {
    let parts = Parts::new(inputs, shape);
    let slices = parts.slices(&parts.projected);
    let xbc = parts.convolved(&slices);
    let dt = step_size::forward(&slices.dt, &parts.dt_bias, parts.limits());
    let SsdForward { y, saved } = ssd::forward(parts.scan_inputs(xbc, dt.clone()), &parts.scan);
    let dtype = parts.projected.dtype;
    let (out, rstd) = gated_group_norm::forward(&parts.norm(&y, &slices), dtype);
    [out, dt, y, rstd].into_iter().chain(saved).collect()
}

/// The gradients of the inputs of forward.
pub(super) fn backward<R: CubeRuntime>(
    mut inputs: Vec<CubeTensor<R>>,
    shape: MixerShape,
) -> Vec<CubeTensor<R>> {
    let made = parameters(&inputs).count();
    let mut made = inputs.split_off(made).into_iter();
    let mut next = || made.next().expect("what forward made, and a gradient");
    let (dt, y, rstd) = (next(), next(), next());
    let saved = (0..SAVED).map(|_| next()).collect();
    let dout = next();

    let parts = Parts::new(inputs, shape);
    let slices = parts.slices(&parts.projected);
    let projected = &parts.projected;
    let grad = empty(projected, projected.meta.shape().clone(), projected.dtype);
    let into = parts.slices(&grad);
    let (dy, d_norm) = gated_group_norm::backward(&parts.norm(&y, &slices), &rstd, &dout, &into.z);
    let xbc = parts.convolved(&slices);
    let SsdGrads {
        dxbc,
        ddt,
        da_log,
        dd_skip,
    } = ssd::backward(parts.scan_inputs(xbc, dt), saved, dy, &parts.scan);
    let bias = parts.conv_bias.as_ref();
    let (d_conv, d_conv_bias) =
        conv_silu::backward(&slices.xbc, &parts.conv_weight, bias, &dxbc, &into.xbc);
    let d_dt_bias = step_size::backward(&slices.dt, &parts.dt_bias, parts.limits(), &ddt, &into.dt);
    [grad, d_conv, d_dt_bias, da_log, dd_skip, d_norm]
        .into_iter()
        .chain(d_conv_bias)
        .collect()
}
