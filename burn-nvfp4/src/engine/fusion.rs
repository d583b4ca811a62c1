//! `Fusion<CubeBackend>` (`Cuda`, `Wgpu`, .. with Burn's feature `fusion`): each pass of a linear
//! is one custom operation.
//!
//! Fusion records operations and runs them later, on another thread. So an operation here carries
//! everything that it needs by value (the plan was read on the caller's thread), says the shape and
//! dtype of each of its outputs in advance, and runs the same pass of the backend below.

use std::sync::Arc;

use burn_backend::ops::FloatTensorOps;
use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{Backend, BackendTypes, DType, DeviceOps, Shape, TensorMetadata};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};
use cubecl::server::ComputeServer;

use super::cube::kept_form;
use super::linear::{self, KeptUse, KeptUses, fprop_weight_use};
use super::{
    DeviceOperand, DevicePacked, DeviceScales, Kept, Like, MemoryGauge, Nvfp4Engine, Operand,
    PackedLayout, Reading, Support, Wanted, Weight, WeightOperands,
};
use crate::cpu::Contraction;
use crate::recipe::OperandSpec;
use crate::runtime::LinearPlan;

impl<R, F, I, BT> Nvfp4Engine for Fusion<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    R::Server: ComputeServer,
    R::Device: DeviceOps,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn has_own_gemm(device: &Device<Self>) -> bool {
        CubeBackend::<R, F, I, BT>::has_own_gemm(device)
    }

    fn packs_for_both_axes(device: &Device<Self>) -> bool {
        CubeBackend::<R, F, I, BT>::packs_for_both_axes(device)
    }

    fn pack_weight(weight: FloatTensor<Self>, plan: &LinearPlan) -> WeightOperands<Self> {
        let device = Self::float_device(&weight);
        if is_empty(&weight) || stays_with_burn::<Self>(&device, plan) {
            return linear::pack_weight::<Self>(weight, plan);
        }
        let shape = weight.shape();
        let kept = KeptUses::new::<Self>(plan, Wanted::Weight, &device).weight;
        let dgrad = kept.filter(|kept| !kept.one_packing);
        let fprop = KeptUse {
            later: fprop_weight_use(plan),
            one_packing: false,
        };
        let form = |kept| kept_form::<R>(&device, kept, &shape);
        let forms = [Some(form(fprop)), dgrad.map(form)];
        let outputs: Vec<_> = forms.iter().flatten().flat_map(Form::outputs).collect();
        let made = if outputs.is_empty() {
            vec![]
        } else {
            let (plan, promised) = (plan.clone(), forms.clone());
            let inputs = vec![weight.clone()];
            let name = "nvfp4::pack_weight";
            record::<CubeBackend<R, F, I, BT>>(name, inputs, outputs, move |tensors| {
                let weight = next(&mut tensors.into_iter());
                let WeightOperands { fprop, dgrad, .. } =
                    CubeBackend::<R, F, I, BT>::pack_weight(weight, &plan);
                let operands = [Some(fprop), dgrad].into_iter().zip(&promised);
                let operands = operands.filter_map(|(made, form)| made.zip(form.as_ref()));
                operands
                    .flat_map(|(made, form)| form.parts_of(made))
                    .collect()
            })
        };
        let mut made = made.into_iter();
        let [fprop, dgrad] = forms.map(|form| {
            form.map(|form| {
                let itself = form.is_tensor().then(|| weight.clone());
                form.join(itself, &mut made)
            })
        });
        WeightOperands {
            shape,
            fprop: fprop.expect("fprop has an operand"),
            dgrad,
        }
    }

    fn fprop(
        x: FloatTensor<Self>,
        weight: Weight<Self>,
        bias: Option<FloatTensor<Self>>,
        plan: &LinearPlan,
        wanted: Wanted,
    ) -> (FloatTensor<Self>, Kept<Self>) {
        let device = Self::float_device(&x);
        let w_shape = weight.shape();
        let empty = is_empty(&x) || w_shape.num_elements() == 0;
        if empty || stays_with_burn::<Self>(&device, plan) {
            return linear::fprop::<Self>(x, weight, bias, plan, wanted);
        }
        // What is packed already is not made again, and comes back as it is.
        let (ready, wanted) = match &weight {
            Weight::Tensor(_) => (None, wanted),
            Weight::Operands(operands) => (
                wanted.weight().then(|| operands.for_dgrad()),
                wanted.without_weight(),
            ),
        };
        let mut y_shape = x.shape();
        let last = y_shape.num_dims() - 1;
        y_shape[last] = w_shape[1];
        let form = |uses: Option<KeptUse>, shape: &Shape| {
            uses.map(|kept| kept_form::<R>(&device, kept, shape))
        };
        let uses = KeptUses::new::<Self>(plan, wanted, &device);
        let forms = [form(uses.weight, &w_shape), form(uses.x, &x.shape())];
        let mut outputs = vec![(y_shape, x.dtype())];
        outputs.extend(forms.iter().flatten().flat_map(Form::outputs));
        let has_mean = uses.x.is_some() && plan.recipe.keeps_means_apart();
        outputs.extend(has_mean.then(|| mean_of(&x)));

        // A tensor that is kept as it is; packed ones are outputs of the operation.
        let is_tensor = |form: &Option<Form>| form.as_ref().is_some_and(Form::is_tensor);
        let [weight_form, x_form] = forms.clone();
        let x_itself = is_tensor(&x_form).then(|| x.clone());
        let (recorded, weight_parts) = RecordedWeight::split(weight);
        let weight_itself = is_tensor(&weight_form).then(|| weight_parts[0].clone());
        let inputs = std::iter::once(x).chain(weight_parts).chain(bias).collect();
        let owned = plan.clone();
        let promised = forms;
        let name = "nvfp4::fprop";
        let mut made = record::<CubeBackend<R, F, I, BT>>(name, inputs, outputs, move |tensors| {
            let mut tensors = tensors.into_iter();
            let x = next(&mut tensors);
            let weight = recorded.clone().rejoin(&mut tensors);
            let (y, kept) =
                CubeBackend::<R, F, I, BT>::fprop(x, weight, tensors.next(), &owned, wanted);
            let Kept { weight, x, x_mean } = kept;
            let kept = [weight, x].into_iter().zip(&promised);
            let kept = kept.filter_map(|(operand, form)| operand.zip(form.as_ref()));
            let parts = kept.flat_map(|(operand, form)| form.parts_of(operand));
            std::iter::once(y).chain(parts).chain(x_mean).collect()
        })
        .into_iter();
        let y = next(&mut made);
        let weight = weight_form.map(|form| form.join(weight_itself, &mut made));
        let x = x_form.map(|form| form.join(x_itself, &mut made));
        let x_mean = made.next();
        let weight = ready.or(weight);
        (y, Kept { weight, x, x_mean })
    }

    fn backward(
        kept: Kept<Self>,
        dy: FloatTensor<Self>,
        plan: &LinearPlan,
        x: Like,
        weight: Like,
    ) -> (Option<FloatTensor<Self>>, Option<FloatTensor<Self>>) {
        let device = Self::float_device(&dy);
        if is_empty(&dy) || stays_with_burn::<Self>(&device, plan) || is_host(&kept) {
            return linear::backward::<Self>(kept, dy, plan, x, weight);
        }
        let wanted = [kept.weight.is_some(), kept.x.is_some()];
        let outputs = [&x, &weight].into_iter().zip(wanted);
        let outputs = outputs.filter(|(_, wanted)| *wanted);
        let outputs = outputs.map(|(like, _)| like.clone()).collect();

        let mut inputs = vec![dy];
        let forms = [kept.weight, kept.x].map(|operand| {
            operand.map(|operand| {
                let (form, parts) = Form::split(operand);
                inputs.extend(parts);
                form
            })
        });
        inputs.extend(kept.x_mean);
        let plan = plan.clone();
        let mut grads = record::<CubeBackend<R, F, I, BT>>(
            "nvfp4::backward",
            inputs,
            outputs,
            move |tensors| {
                let mut tensors = tensors.into_iter();
                let dy = next(&mut tensors);
                let [kept_weight, kept_x] = forms
                    .clone()
                    .map(|form| form.map(|form| form.rejoin(&mut tensors)));
                let kept = Kept {
                    weight: kept_weight,
                    x: kept_x,
                    x_mean: tensors.next(),
                };
                let (dx, dw) = CubeBackend::<R, F, I, BT>::backward(
                    kept,
                    dy,
                    &plan,
                    x.clone(),
                    weight.clone(),
                );
                dx.into_iter().chain(dw).collect()
            },
        )
        .into_iter();
        let [has_dx, has_dw] = wanted;
        let dx = has_dx.then(|| next(&mut grads));
        (dx, has_dw.then(|| next(&mut grads)))
    }

    fn x_backward(
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: &LinearPlan,
        x: Like,
    ) -> FloatTensor<Self> {
        if [&weight, &dy].map(is_empty) != [false; 2] {
            return linear::x_backward::<Self>(weight, dy, plan, x);
        }
        let plan = plan.clone();
        let like = x.clone();
        let run = move |tensors: Vec<_>| {
            let mut tensors = tensors.into_iter();
            let (weight, dy) = (next(&mut tensors), next(&mut tensors));
            vec![CubeBackend::<R, F, I, BT>::x_backward(
                weight,
                dy,
                &plan,
                like.clone(),
            )]
        };
        let made =
            record::<CubeBackend<R, F, I, BT>>("nvfp4::x_backward", vec![weight, dy], vec![x], run);
        next(&mut made.into_iter())
    }

    fn weight_backward(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: &LinearPlan,
        weight: Like,
    ) -> FloatTensor<Self> {
        if [&x, &dy].map(is_empty) != [false; 2] {
            return linear::weight_backward::<Self>(x, dy, plan, weight);
        }
        let plan = plan.clone();
        let like = weight.clone();
        let run = move |tensors: Vec<_>| {
            let mut tensors = tensors.into_iter();
            let (x, dy) = (next(&mut tensors), next(&mut tensors));
            vec![CubeBackend::<R, F, I, BT>::weight_backward(
                x,
                dy,
                &plan,
                like.clone(),
            )]
        };
        let inputs = vec![x, dy];
        let made =
            record::<CubeBackend<R, F, I, BT>>("nvfp4::weight_backward", inputs, vec![weight], run);
        next(&mut made.into_iter())
    }

    fn weight_values(weight: FloatTensor<Self>, spec: OperandSpec) -> FloatTensor<Self> {
        if is_empty(&weight) {
            return linear::weight_values::<Self>(weight, spec);
        }
        let values = vec![(weight.shape(), DType::F32)];
        let run = move |tensors: Vec<_>| {
            let weight = next(&mut tensors.into_iter());
            vec![CubeBackend::<R, F, I, BT>::weight_values(weight, spec)]
        };
        let made =
            record::<CubeBackend<R, F, I, BT>>("nvfp4::weight_values", vec![weight], values, run);
        next(&mut made.into_iter())
    }

    fn memory_gauge(device: &Device<Self>) -> Option<MemoryGauge> {
        CubeBackend::<R, F, I, BT>::memory_gauge(device)
    }

    fn support(device: &Device<Self>) -> Support {
        CubeBackend::<R, F, I, BT>::support(device)
    }
}

/// True if no GEMM of the plan is ours: Burn's ops are recorded one by one, and fused.
fn stays_with_burn<B: Nvfp4Engine>(device: &Device<B>, plan: &LinearPlan) -> bool {
    !plan.recipe.is_quantized() && !B::has_own_gemm(device)
}

/// True if an operand lies in host memory: then forward took the portable way.
fn is_host<B: Backend>(kept: &Kept<B>) -> bool {
    [&kept.weight, &kept.x]
        .into_iter()
        .flatten()
        .any(|operand| matches!(operand, Operand::Packed { .. } | Operand::Decoded(_)))
}

/// Shape and dtype of the mean of `x` over tokens.
fn mean_of(x: &impl TensorMetadata) -> (Shape, DType) {
    let shape = x.shape();
    (Shape::new([1, shape[shape.num_dims() - 1]]), DType::F32)
}

fn is_empty(tensor: &impl TensorMetadata) -> bool {
    tensor.shape().num_elements() == 0
}

fn next<T>(tensors: &mut impl Iterator<Item = T>) -> T {
    tensors
        .next()
        .expect("an operation gets and makes as many tensors as it was recorded with")
}

/// The tensors of the backend below.
type Tensors<B> = Vec<<B as BackendTypes>::FloatTensorPrimitive>;

/// One recorded operation.
struct Recorded<B: FusionBackend> {
    desc: CustomOpIr,
    run: Arc<dyn Fn(Tensors<B>) -> Tensors<B> + Send + Sync>,
}

impl<B: FusionBackend> std::fmt::Debug for Recorded<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorded")
            .field("desc", &self.desc)
            .finish_non_exhaustive()
    }
}

type HandleOf<B> = <<B as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle;

impl<B: FusionBackend> Operation<B::FusionRuntime> for Recorded<B> {
    fn execute(&self, handles: &mut HandleContainer<HandleOf<B>>) {
        let inputs = self.desc.inputs.iter();
        let inputs = inputs.map(|input| handles.get_float_tensor::<B>(input));
        let made = (self.run)(inputs.collect());
        assert_eq!(made.len(), self.desc.outputs.len(), "{}", self.desc.id);
        for (promised, tensor) in self.desc.outputs.iter().zip(made) {
            // A tensor of another shape or dtype would be misread without a word.
            assert_eq!(
                (&promised.shape, promised.dtype),
                (&tensor.shape(), tensor.dtype()),
                "{}",
                self.desc.id
            );
            handles.register_float_tensor::<B>(&promised.id, tensor);
        }
    }
}

/// Records `run` as one operation on `inputs`; the first input names the device.
///
/// For operations of other crates too. `outputs` are the shapes and dtypes that `run` promises to
/// make; it runs later, on another thread. On CubeCL backends integer tensors travel as floats do.
pub fn record<B: FusionBackend>(
    name: &'static str,
    inputs: Vec<FloatTensor<Fusion<B>>>,
    outputs: Vec<(Shape, DType)>,
    run: impl Fn(Tensors<B>) -> Tensors<B> + Send + Sync + 'static,
) -> Vec<FloatTensor<Fusion<B>>> {
    let client = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(&inputs);
    let outputs: Vec<_> = outputs
        .into_iter()
        .map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype))
        .collect();
    let inputs: Vec<_> = inputs.into_iter().map(|input| input.into_ir()).collect();
    let desc = CustomOpIr::new(name, &inputs, &outputs);
    let operation = Recorded::<B> {
        desc: desc.clone(),
        run: Arc::new(run),
    };
    client.register(streams, OperationIr::Custom(desc), operation)
}

/// The weight of fprop without its tensors.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one exists for as long as an operation is recorded"
)]
enum RecordedWeight {
    Tensor,
    Operands { shape: Shape, fprop: Form },
}

impl RecordedWeight {
    /// Takes a weight apart; that of dgrad stays outside of the operation.
    fn split<B, T>(weight: Weight<B>) -> (Self, Vec<T>)
    where
        B: Backend<FloatTensorPrimitive = T, IntTensorPrimitive = T>,
        T: TensorMetadata,
    {
        match weight {
            Weight::Tensor(tensor) => (Self::Tensor, vec![tensor]),
            Weight::Operands(WeightOperands { shape, fprop, .. }) => {
                let (fprop, parts) = Form::split(fprop);
                (Self::Operands { shape, fprop }, parts)
            }
        }
    }

    /// Puts back together what [`Self::split`] took apart.
    fn rejoin<B, T>(self, parts: &mut impl Iterator<Item = T>) -> Weight<B>
    where
        B: Backend<FloatTensorPrimitive = T, IntTensorPrimitive = T>,
    {
        match self {
            Self::Tensor => Weight::Tensor(next(parts)),
            Self::Operands { shape, fprop } => Weight::Operands(WeightOperands {
                shape,
                fprop: fprop.rejoin(parts),
                dgrad: None,
            }),
        }
    }
}

/// A kept operand without its tensors: all that is known when the operation is recorded.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "two exist for as long as an operation is recorded"
)]
pub(super) enum Form {
    /// The tensor itself.
    HighPrecision { along: Contraction },
    /// Codes, scales and amax.
    Packed {
        layout: PackedLayout,
        reading: Reading,
        codes: Shape,
        /// `None` if the format has no blocks.
        scales: Option<(Shape, DType)>,
        amax: Shape,
    },
}

impl Form {
    /// True if the operand is a tensor that was there before.
    const fn is_tensor(&self) -> bool {
        matches!(self, Self::HighPrecision { .. })
    }

    /// Shape and dtype of the tensors that the operation makes for it.
    fn outputs(&self) -> Vec<(Shape, DType)> {
        match self {
            Self::HighPrecision { .. } => vec![],
            Self::Packed {
                codes,
                scales,
                amax,
                ..
            } => std::iter::once((codes.clone(), DType::U32))
                .chain(scales.clone())
                .chain([(amax.clone(), DType::F32)])
                .collect(),
        }
    }

    /// The tensors of an operand of this form that are not there yet.
    fn parts_of<B, T>(&self, operand: Operand<B>) -> Vec<T>
    where
        B: Backend<FloatTensorPrimitive = T, IntTensorPrimitive = T>,
        T: TensorMetadata,
    {
        match self {
            Self::HighPrecision { .. } => vec![],
            Self::Packed {
                layout, reading, ..
            } => {
                let (made, parts) = Self::split(operand);
                let Self::Packed {
                    layout: made_layout,
                    reading: made_reading,
                    ..
                } = made
                else {
                    unreachable!("the form was predicted from the same plan");
                };
                assert_eq!((*layout, *reading), (made_layout, made_reading));
                parts
            }
        }
    }

    /// Takes an operand apart.
    fn split<B, T>(operand: Operand<B>) -> (Self, Vec<T>)
    where
        B: Backend<FloatTensorPrimitive = T, IntTensorPrimitive = T>,
        T: TensorMetadata,
    {
        match operand {
            Operand::HighPrecision { tensor, along } => {
                (Self::HighPrecision { along }, vec![tensor])
            }
            Operand::Device(DeviceOperand {
                packed: Some(packed),
                ..
            }) => {
                let scales = match packed.scales {
                    DeviceScales::None => None,
                    DeviceScales::Bytes(scales) | DeviceScales::F32(scales) => Some(scales),
                };
                let form = Self::Packed {
                    layout: packed.layout,
                    reading: packed.reading,
                    codes: packed.codes.shape(),
                    scales: scales.as_ref().map(|s| (s.shape(), s.dtype())),
                    amax: packed.amax.shape(),
                };
                let parts = std::iter::once(packed.codes)
                    .chain(scales)
                    .chain([packed.amax]);
                (form, parts.collect())
            }
            Operand::Device(_) | Operand::Packed { .. } | Operand::Decoded(_) => {
                unreachable!("a node on a device keeps packed operands or tensors")
            }
        }
    }

    /// Puts an operand together from the tensor itself, or from parts that an operation made.
    fn join<B, T>(self, itself: Option<T>, parts: &mut impl Iterator<Item = T>) -> Operand<B>
    where
        B: Backend<FloatTensorPrimitive = T, IntTensorPrimitive = T>,
    {
        self.rejoin(&mut itself.into_iter().chain(parts))
    }

    /// Puts back together what [`Self::split`] took apart.
    fn rejoin<B, T>(self, parts: &mut impl Iterator<Item = T>) -> Operand<B>
    where
        B: Backend<FloatTensorPrimitive = T, IntTensorPrimitive = T>,
    {
        match self {
            Self::HighPrecision { along } => Operand::HighPrecision {
                tensor: next(parts),
                along,
            },
            Self::Packed {
                layout,
                reading,
                scales,
                ..
            } => {
                let codes = next(parts);
                let scales = match scales {
                    None => DeviceScales::None,
                    Some((_, DType::F32)) => DeviceScales::F32(next(parts)),
                    Some(_) => DeviceScales::Bytes(next(parts)),
                };
                let amax = next(parts);
                Operand::Device(DeviceOperand {
                    packed: Some(DevicePacked {
                        layout,
                        reading,
                        codes,
                        scales,
                        amax,
                    }),
                    decoded: None,
                    alpha: None,
                })
            }
        }
    }
}
