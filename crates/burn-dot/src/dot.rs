//! [`Dot`] and [`dot`]: the layer, and the checks of its inputs.

use alloc::{format, string::ToString, sync::Arc};

use burn_core as burn; // The derive macros write paths that begin with `burn`.
use burn_core::backend::Dispatch;
use burn_core::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn_core::tensor::{DType, Tensor, kind::Numeric};

use crate::{
    axes::Axes,
    config::DotConfig,
    error::{DotError, Operand, Shapes},
    ops::{self, DotOps},
    plan::{FloatOptions, Plan},
    reference,
};

/// Batched dot product of two tensors along chosen axes, optionally of the normalized inputs: `tf.keras.layers.Dot`.
///
/// ```text
/// out[b, i, j] = Σₖ lhs[b, i, k] · rhs[b, j, k]          i, j: the free axes; k: the contracted ones
/// normalize:     lhs and rhs are first divided by max(‖·‖ over k, epsilon)
/// ```
///
/// It has no parameters, and works on any device and any rank. A module that holds one is saved and loaded as ever; the record has
/// nothing of it, so build the module by the same configuration. The whole is one operation with a backward pass of its own. On flex
/// it runs in kernels, without normalized or permuted copies of its inputs.
///
/// # Shapes
///
/// | inputs | config | output |
/// |---|---|---|
/// | `(B, n) · (B, n)` | `new(1)` | `(B, 1)` |
/// | `(B, m, k) · (B, k, n)` | `new((2, 1))` | `(B, m, n)` |
/// | `(B, s, m, k) · (B, s, k, n)` | `new((3, 2))` | `(B, s, m, s, n)`: free axes are never paired |
/// | `(B, h, t, d) · (B, h, s, d)` | `new(3).with_batch_dims(2)` | `(B, h, t, s)` |
/// | `(B, n) · (C, n)` | `new(1).with_batch_dims(0)` | `(B, C)` |
/// | `(B, i, j) · (B, j, i)` | `new([(1, 2), (2, 1)])` | `(B, 1)` |
///
/// # Numerics
///
/// f16 and bf16 are multiplied and accumulated in f32 and rounded once. Norms neither overflow nor underflow. A normalized
/// output of finite inputs lies in [-1, 1]. A zero vector gives 0; NaN reaches only the outputs it belongs to; an infinite
/// entry gives NaN when normalized. A contracted size of 0 gives zeros. Integers wrap in the
/// dtype of the output.
///
/// # Gradient
///
/// Plain: `grad_lhs = grad_out · rhs`, `grad_rhs = grad_outᵀ · lhs`. Normalized, with `u = x/‖x‖` and `g` the gradient that
/// reaches `u`: `(g − u (u·g)) / ‖x‖` where `‖x‖ ≥ epsilon`, `g / epsilon` below; f16 and bf16 saturate.
///
/// # Errors
///
/// [`try_forward`](Self::try_forward) returns a [`DotError`]; [`forward`](Self::forward) panics with its text.
///
/// # Differences from Keras
///
/// Keras' Dot has neither `batch_dims`, nor several axis pairs, nor a choice of the epsilon, which is 1e-6 in tf.keras and 1e-7
/// in Keras 3. It overflows for large entries, and gives NaN for zero vectors in f16. It does not clamp cosines to [-1, 1], and adds
/// f16 and bf16 as TensorFlow does. Its batch of 1 meets any other where its shape is unknown; here that takes
/// [`with_broadcast_batch`](DotConfig::with_broadcast_batch).
///
/// # Source
///
/// [`tf.keras.layers.Dot`](https://www.tensorflow.org/api_docs/python/tf/keras/layers/Dot).
///
/// ```
/// use burn::prelude::*;
/// use burn_dot::DotConfig;
///
/// let device = Device::flex();
/// let x = Tensor::<3, Int>::from_data([[[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]], &device);
/// let y = Tensor::<3, Int>::from_data([[[10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]], &device);
///
/// let out: Tensor<3, Int> = DotConfig::new((1, 2)).init().forward(x, y);
/// assert_eq!(out.to_data(), Tensor::<3, Int>::from_data([[[260, 360], [320, 445]]], &device).to_data());
/// ```
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Dot {
    #[module(skip)]
    pub(crate) config: DotConfig,
}

impl Dot {
    /// The configuration it was made from.
    pub fn config(&self) -> &DotConfig {
        &self.config
    }

    /// The dot product of `lhs` and `rhs`; see [`Dot`] for the formula, shapes, numerics and gradient.
    ///
    /// The rank of the output comes from the binding, or is written out where there is none.
    ///
    /// # Panics
    ///
    /// With the text of the [`DotError`] at the caller's line, where [`try_forward`](Self::try_forward) returns one.
    ///
    /// ```
    /// use burn::prelude::*;
    /// use burn_dot::DotConfig;
    ///
    /// let (user, item) = (Tensor::<2>::ones([5, 8], &Device::flex()), Tensor::<2>::ones([5, 8], &Device::flex()));
    /// let dot = DotConfig::new(1).init();
    /// let scores: Tensor<2> = dot.forward(user.clone(), item.clone());
    /// // Ranks of lhs, rhs and the output; `_` is float or integer.
    /// let mean = dot.forward::<2, 2, 2, _>(user, item).mean();
    /// assert_eq!(scores.mean().to_data(), mean.to_data());
    /// ```
    #[track_caller]
    pub fn forward<const D1: usize, const D2: usize, const DO: usize, K: Numeric>(
        &self,
        lhs: Tensor<D1, K>,
        rhs: Tensor<D2, K>,
    ) -> Tensor<DO, K> {
        match self.try_forward(lhs, rhs) {
            Ok(out) => out,
            Err(error) => panic!("{error}"),
        }
    }

    /// The dot product of `lhs` and `rhs`, or what is wrong with them.
    ///
    /// # Errors
    ///
    /// A [`DotError`] for an axis out of range, contracted twice or shared as batch; sizes, batches, dtypes or devices that
    /// differ; a rank too small; an output whose rank is not `DO`; inputs or an output too large to count; quantized inputs;
    /// `normalize` with integers; an output dtype of another kind, too narrow, or that the device lacks; a device whose feature is not
    /// enabled on this crate. All are found before any arithmetic.
    ///
    /// ```
    /// use burn::prelude::*;
    /// use burn_dot::DotConfig;
    ///
    /// let device = Device::flex();
    /// let (lhs, rhs) = (Tensor::<2>::ones([2, 3], &device), Tensor::<2>::ones([2, 4], &device));
    /// let result: Result<Tensor<2>, _> = DotConfig::new(1).init().try_forward(lhs, rhs);
    /// assert_eq!(
    ///     result.unwrap_err().to_string(),
    ///     "Dot: lhs axis 1 has size 3 but rhs axis 1 has size 4; lhs [2, 3], rhs [2, 4]"
    /// );
    /// ```
    pub fn try_forward<const D1: usize, const D2: usize, const DO: usize, K: Numeric>(
        &self,
        lhs: Tensor<D1, K>,
        rhs: Tensor<D2, K>,
    ) -> Result<Tensor<DO, K>, DotError> {
        let plan = Arc::new(self.plan::<D1, D2, DO, K>(&lhs, &rhs)?);
        let float = lhs.dtype().is_float();
        let (lhs, rhs) = (lhs.into_dispatch(), rhs.into_dispatch());
        Ok(Tensor::from_dispatch(if float {
            Dispatch::float_dot(lhs, rhs, plan, self.float_options())
        } else {
            Dispatch::int_dot(lhs, rhs, plan, self.config.output_dtype.map(Into::into))
        }))
    }

    /// The same result as [`forward`](Self::forward), composed from Burn's tensor operations (normalize, permute, reshape,
    /// batched matmul) with gradients by autodiff.
    ///
    /// It is the reference that every other path must agree with: slower, and with temporaries as large as the inputs. Hidden, because
    /// only tests and benches compare paths; a user has no reason to choose this one.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    #[doc(hidden)]
    #[track_caller]
    pub fn forward_composed<const D1: usize, const D2: usize, const DO: usize, K: Numeric>(
        &self,
        lhs: Tensor<D1, K>,
        rhs: Tensor<D2, K>,
    ) -> Tensor<DO, K> {
        match self.plan::<D1, D2, DO, K>(&lhs, &rhs) {
            Ok(plan) => {
                let float = lhs.dtype().is_float();
                let (lhs, rhs) = (lhs.into_dispatch(), rhs.into_dispatch());
                Tensor::from_dispatch(if float {
                    ops::float_dot_composed(lhs, rhs, &plan, self.float_options())
                } else {
                    reference::int_dot::<Dispatch>(lhs, rhs, &plan, self.config.output_dtype.map(Into::into))
                })
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn float_options(&self) -> FloatOptions {
        let DotConfig { normalize, epsilon, output_dtype, .. } = self.config;
        FloatOptions { normalize: normalize.then_some(epsilon), output: output_dtype.map(Into::into) }
    }

    /// Checks everything that can be wrong, in the order a reader would: what the inputs are, where they are, how they meet.
    fn plan<const D1: usize, const D2: usize, const DO: usize, K: Numeric>(
        &self,
        lhs: &Tensor<D1, K>,
        rhs: &Tensor<D2, K>,
    ) -> Result<Plan, DotError> {
        let DotConfig { axes, normalize, batch_dims, broadcast_batch, output_dtype, .. } = &self.config;
        let (dtype, device, rhs_device) = (lhs.dtype(), lhs.device(), rhs.device());
        let shapes = || Shapes::known(&lhs.dims(), &rhs.dims());
        for (operand, dtype) in [(Operand::Lhs, dtype), (Operand::Rhs, rhs.dtype())] {
            if matches!(dtype, DType::QFloat(_)) {
                return Err(DotError::Quantized { operand, shapes: shapes() });
            }
        }
        if dtype != rhs.dtype() {
            return Err(DotError::DTypeMismatch { lhs: dtype, rhs: rhs.dtype(), shapes: shapes() });
        }
        if !dtype.is_float() && *normalize {
            return Err(DotError::NormalizeIntegers { dtype, shapes: shapes() });
        }
        if let Some(output) = *output_dtype {
            if dtype.is_float() != output.is_float() || is_integer(dtype) != is_integer(output) {
                return Err(DotError::OutputDTypeKind { input: dtype, output, shapes: shapes() });
            }
            if is_integer(dtype) && !holds_every(dtype, output) {
                return Err(DotError::OutputDTypeTooNarrow { input: dtype, output, shapes: shapes() });
            }
            if !device.supports_dtype(output) {
                let device = format!("{device:?}");
                return Err(DotError::UnsupportedOutputDType { dtype: output, device, shapes: shapes() });
            }
        }
        if device != rhs_device {
            let (lhs, rhs) = (format!("{device:?}"), format!("{rhs_device:?}"));
            return Err(DotError::DeviceMismatch { lhs, rhs, shapes: shapes() });
        }
        for device in [&device, &rhs_device] {
            if let Some(feature) = ops::missing_feature(device) {
                return Err(DotError::MissingFeature { device: format!("{device:?}"), feature, shapes: shapes() });
            }
        }
        #[cfg(feature = "autodiff")]
        if let (Some(lhs), Some(rhs)) = (device.gradient_checkpointing_strategy(), rhs_device.gradient_checkpointing_strategy())
            && lhs != rhs
        {
            return Err(DotError::CheckpointingMismatch { shapes: shapes() });
        }

        let plan = Plan::new(axes, *batch_dims, *broadcast_batch, &lhs.dims(), &rhs.dims())?;
        if plan.output.len() != DO {
            return Err(DotError::OutputRank { expected: DO, output: plan.output.to_vec(), shapes: shapes() });
        }
        Ok(plan)
    }
}

fn is_integer(dtype: DType) -> bool {
    dtype.is_int() || dtype.is_uint()
}

/// Whether `output` can hold every value of `input`, both integer dtypes.
fn holds_every(input: DType, output: DType) -> bool {
    match (input.is_uint(), output.is_uint()) {
        (false, true) => false, // Negative values are lost.
        (true, false) => output.size() > input.size(),
        _ => output.size() >= input.size(),
    }
}

impl ModuleDisplay for Dot {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let DotConfig { axes, normalize, epsilon, batch_dims, broadcast_batch, output_dtype } = &self.config;
        // What differs from the defaults, as in the saved configuration.
        let mut content = content.add("axes", &axes.to_string()).add("normalize", normalize);
        if *normalize && *epsilon != DotConfig::DEFAULT_EPSILON {
            content = content.add("epsilon", epsilon);
        }
        if *batch_dims != 1 {
            content = content.add("batch_dims", batch_dims);
        }
        if *broadcast_batch {
            content = content.add("broadcast_batch", broadcast_batch);
        }
        if let Some(dtype) = output_dtype {
            content = content.add_debug_attribute("output_dtype", dtype);
        }
        content.optional()
    }
}

/// The functional form of a plain [`Dot`], as `keras.layers.dot`.
///
/// ```text
/// out[b, i, j] = Σₖ lhs[b, i, k] · rhs[b, j, k]
/// ```
///
/// # Shapes
///
/// `batch · lhs's free axes · rhs's free axes`; see [`Dot`] for a table, and for numerics and gradient.
///
/// # Panics
///
/// With the text of the [`DotError`], as [`Dot::forward`].
///
/// # Source
///
/// [`tf.keras.layers.dot`](https://www.tensorflow.org/api_docs/python/tf/keras/layers/dot).
///
/// ```
/// use burn::prelude::*;
///
/// let device = Device::flex();
/// let lhs = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &device);
/// let rhs = Tensor::<2>::from_data([[5.0, 6.0], [7.0, 8.0]], &device);
/// let out: Tensor<2> = burn_dot::dot(lhs, rhs, 1);
/// assert_eq!(out.to_data(), Tensor::<2>::from_data([[17.0], [53.0]], &device).to_data());
/// ```
#[track_caller]
pub fn dot<const D1: usize, const D2: usize, const DO: usize, K: Numeric>(
    lhs: Tensor<D1, K>,
    rhs: Tensor<D2, K>,
    axes: impl Into<Axes>,
) -> Tensor<DO, K> {
    DotConfig::new(axes).init().forward(lhs, rhs)
}
