//! The product composed from Burn's operations: normalize, permute, reshape, batched matmul. Gradients by autodiff.
//!
//! Every backend can run it, and every other path must agree with it.
//!
//! # The norm that never overflows
//!
//! `x / max(‖x‖, floor)` overflows in `‖x‖²` long before `‖x‖` does, and `‖x‖` has no gradient at zero. So:
//!
//! ```text
//! c = max(max|x|, floor)          a scale, held constant by the gradient
//! y = x / c                       every |y| ≤ 1
//! t = max(‖y‖, 1)                 ‖y‖ ≥ 1 exactly when ‖x‖ ≥ floor
//! u = y / t                     = x / max(‖x‖, floor)
//! ```
//!
//! Where `‖y‖ < 1` its square is replaced by 1, a constant, so the gradient of `u` is `g / floor`. Elsewhere it is `(g − u (u·g)) / ‖x‖`, at `‖x‖ = floor` as well.

use alloc::vec::Vec;

use burn_core::backend::{
    Backend, TensorMetadata, get_or_init_device_settings,
    tensor::{FloatTensor, IntTensor},
};
use burn_core::tensor::{DType, FloatDType, IntDType, Shape};

use crate::{ops::DotOps, plan::Plan};

/// How a float product is to be computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloatOptions {
    /// The floor on the norm, where the inputs are to be normalized.
    pub normalize: Option<f64>,
    /// Dtype of the output; that of the inputs where not given.
    pub output: Option<FloatDType>,
}

/// The product of float tensors.
pub(crate) fn float_dot<B: DotOps>(
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
    plan: &Plan,
    options: FloatOptions,
) -> FloatTensor<B> {
    let output = options.output.unwrap_or(lhs.dtype().into());
    let compute = accumulator(lhs.dtype().into(), output);
    let prepare = |x: FloatTensor<B>, contracted: &[usize]| match options.normalize {
        Some(floor) => normalize::<B>(B::float_cast_finite_grad(x, compute), contracted, floor, compute),
        None => cast::<B>(x, compute),
    };

    if plan.k == 0 || plan.output.contains(&0) {
        return cast::<B>(zeros::<B>(cast::<B>(lhs, compute), cast::<B>(rhs, compute), plan), output);
    }
    let lhs = prepare(lhs, &plan.lhs_contracted);
    let rhs = prepare(rhs, &plan.rhs_contracted);
    let lhs = arrange::<B>(lhs, &plan.batch_shape, &plan.lhs_order);
    let rhs = arrange::<B>(rhs, &plan.batch_shape, &plan.rhs_order);

    let out = if plan.m * plan.n == 1 {
        // Many small rows: one pass over both inputs, where matmul would run a product per row.
        let lhs = B::float_reshape(lhs, Shape::new([plan.batch, plan.k]));
        let rhs = B::float_reshape(rhs, Shape::new([plan.batch, plan.k]));
        B::float_sum_dim(B::float_mul(lhs, rhs), 1)
    } else {
        let lhs = B::float_reshape(lhs, Shape::new([plan.batch, plan.m, plan.k]));
        let rhs = B::float_reshape(rhs, Shape::new([plan.batch, plan.k, plan.n]));
        B::float_matmul(lhs, rhs)
    };
    let out = if options.normalize.is_some() { into_range::<B>(out) } else { out };
    B::float_reshape(cast::<B>(out, output), plan.output.clone().into())
}

/// The product of integer tensors, wrapping as the dtype does.
pub(crate) fn int_dot<B: Backend>(lhs: IntTensor<B>, rhs: IntTensor<B>, plan: &Plan) -> IntTensor<B> {
    let dtype: IntDType = lhs.dtype().into();
    if plan.k == 0 || plan.output.contains(&0) {
        return B::int_zeros(plan.output.clone().into(), &lhs.device(), dtype);
    }
    // Backends multiply matrices of i32 and i64 only. The low bits of a product are the same in a wider integer.
    let compute = match dtype {
        IntDType::I64 | IntDType::U64 => IntDType::I64,
        IntDType::U32 if B::supports_dtype(&lhs.device(), DType::I64) => IntDType::I64,
        _ => IntDType::I32,
    };
    let matrix = |x: IntTensor<B>, order: &[usize], shape: [usize; 3]| {
        let expanded = expanded_shape(&x.shape(), &plan.batch_shape);
        let x = if x.shape() == expanded { x } else { B::int_expand(x, expanded) };
        let x = B::int_reshape(B::int_permute(x, order), Shape::new(shape));
        if dtype == compute { x } else { B::int_cast(x, compute) }
    };
    let lhs = matrix(lhs, &plan.lhs_order, [plan.batch, plan.m, plan.k]);
    let rhs = matrix(rhs, &plan.rhs_order, [plan.batch, plan.k, plan.n]);
    let out = B::int_matmul(lhs, rhs);
    let out = if dtype == compute { out } else { B::int_cast(low_bits::<B>(out, dtype), dtype) };
    B::int_reshape(out, plan.output.clone().into())
}

/// Wraps to the range of a narrower dtype, so that no backend's cast has to refuse or saturate.
fn low_bits<B: Backend>(x: IntTensor<B>, dtype: IntDType) -> IntTensor<B> {
    let bits = 8 * DType::from(dtype).size() as u32;
    if bits >= 8 * x.dtype().size() as u32 {
        return x;
    }
    let low = B::bitwise_and_scalar(x, ((1i64 << bits) - 1).into());
    if DType::from(dtype).is_uint() {
        return low;
    }
    let sign = 1i64 << (bits - 1);
    B::int_sub_scalar(B::bitwise_xor_scalar(low, sign.into()), sign.into())
}

/// The dtype to multiply and accumulate in: at least f32, and at least as wide as both ends.
fn accumulator(input: FloatDType, output: FloatDType) -> FloatDType {
    if input == FloatDType::F64 || output == FloatDType::F64 { FloatDType::F64 } else { FloatDType::F32 }
}

fn cast<B: Backend>(x: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    if x.dtype() == DType::from(dtype) { x } else { B::float_cast(x, dtype) }
}

/// `x / max(‖x‖, floor)`, the norm over all the `contracted` axes together; see the module's page.
fn normalize<B: Backend>(x: FloatTensor<B>, contracted: &[usize], floor: f64, dtype: FloatDType) -> FloatTensor<B> {
    // A floor below the smallest normal number acts as that number, so no device divides by zero.
    let floor = floor.max(dtype.finfo().min_positive);
    let bools = get_or_init_device_settings::<B>(&x.device()).bool_dtype;

    let largest = B::float_abs(B::float_detach(x.clone()));
    let largest = contracted.iter().fold(largest, |x, &axis| B::float_max_dim(x, axis));
    let scale = B::float_clamp_min(largest.clone(), floor.into());
    let y = B::float_div(x, scale);

    let square = B::float_mul(y.clone(), y.clone());
    let square = contracted.iter().fold(square, |x, &axis| B::float_sum_dim(x, axis));
    // Both conditions say the same in exact arithmetic; a GPU's division may put ‖x/x‖ a little below 1.
    let below_floor = B::bool_and(
        B::float_lower_elem(B::float_detach(square.clone()), 1.0.into(), bools),
        B::float_lower_elem(largest, floor.into(), bools),
    );
    let square = B::float_mask_fill(square, below_floor, 1.0.into());
    // A step of Heron's method from a constant root: its value is the root, its gradient 1/(2 root). Burn takes the gradient of
    // `sqrt` through `powf`, which shaders do not have in f64.
    let root = B::float_sqrt(B::float_detach(square.clone()));
    let norm = B::float_mul_scalar(B::float_add(B::float_div(square, root.clone()), root), 0.5.into());
    B::float_div(y, norm)
}

/// Repeats a batch of 1 and brings the axes into `order`.
fn arrange<B: Backend>(x: FloatTensor<B>, batch_shape: &[usize], order: &[usize]) -> FloatTensor<B> {
    let expanded = expanded_shape(&x.shape(), batch_shape);
    let x = if x.shape() == expanded { x } else { B::float_expand(x, expanded) };
    B::float_permute(x, order)
}

fn expanded_shape(shape: &Shape, batch_shape: &[usize]) -> Shape {
    let rest = shape.iter().skip(batch_shape.len()).copied();
    Shape::from(batch_shape.iter().copied().chain(rest).collect::<Vec<_>>())
}

/// Clamps to [-1, 1]; the gradient passes as if nothing had happened. NaN stays NaN.
fn into_range<B: Backend>(out: FloatTensor<B>) -> FloatTensor<B> {
    let raw = B::float_detach(out.clone());
    let clamped = B::float_clamp(raw.clone(), (-1.0).into(), 1.0.into());
    B::float_add(out, B::float_sub(clamped, raw))
}

/// An output of zeros, or of nothing, through which zero gradients flow to both inputs.
fn zeros<B: Backend>(lhs: FloatTensor<B>, rhs: FloatTensor<B>, plan: &Plan) -> FloatTensor<B> {
    let zeros = B::float_zeros(plan.output.clone().into(), &lhs.device(), lhs.dtype().into());
    let nothing = |x: FloatTensor<B>| {
        let one = B::float_reshape(B::float_sum(x), Shape::from(alloc::vec![1; plan.output.len()]));
        B::float_mul(one, zeros.clone())
    };
    B::float_add(nothing(lhs), nothing(rhs))
}
