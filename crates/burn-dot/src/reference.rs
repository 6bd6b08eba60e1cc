//! The product composed from Burn's operations: permute, reshape, normalize, batched matmul. Gradients by autodiff.
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
//! Where `‖y‖ < 1` its square is replaced by 1, a constant, so the gradient of `u` is `g / floor`. Elsewhere it is
//! `(g − u (u·g)) / ‖x‖`, at `‖x‖ = floor` as well.

use alloc::vec::Vec;

use burn_core::backend::{
    Backend, TensorMetadata, get_or_init_device_settings,
    tensor::{FloatTensor, IntTensor},
};
use burn_core::tensor::{DType, FloatDType, IntDType, Shape, TensorData};

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
    if plan.k == 0 || plan.output.contains(&0) {
        return cast::<B>(zeros::<B>(cast::<B>(lhs, compute), cast::<B>(rhs, compute), plan), output);
    }
    let rows = |x: FloatTensor<B>, order: &[usize], free: usize| {
        let own_batch = Shape::from(x.shape().iter().take(plan.batch_shape.len()).copied().collect::<Vec<_>>());
        let x = match options.normalize {
            Some(_) if x.dtype() != DType::from(compute) => B::float_cast_finite_grad(x, compute),
            _ => cast::<B>(x, compute),
        };
        let x = B::float_permute(x, order);
        let x = match options.normalize {
            Some(floor) => normalize::<B>(x, plan.k, floor, compute),
            None => x,
        };
        repeat_batch::<B>(x, own_batch, plan, free)
    };
    let lhs = rows(lhs, &plan.lhs_order, plan.m);
    let rhs = rows(rhs, &plan.rhs_order, plan.n);
    let out = if plan.m == 1 && plan.n == 1 {
        let row = |x: FloatTensor<B>| {
            let rows = x.shape()[0];
            B::float_reshape(x, Shape::new([rows, plan.k]))
        };
        row_dot::<B>(row(lhs), row(rhs), plan.k)
    } else {
        B::float_matmul(lhs, B::float_swap_dims(rhs, 1, 2))
    };
    let out = if options.normalize.is_some() { into_range::<B>(out) } else { out };
    B::float_reshape(cast::<B>(out, output), plan.output.clone().into())
}

/// The product of integer tensors, wrapping as the dtype does.
pub(crate) fn int_dot<B: Backend>(lhs: IntTensor<B>, rhs: IntTensor<B>, plan: &Plan) -> IntTensor<B> {
    let dtype: IntDType = lhs.dtype().into();
    if plan.k == 0 || plan.output.contains(&0) {
        // From the host: in Burn 0.22.1 integer zeros made on wgpu with fusion hold what was in memory.
        let zeros = TensorData::full_dtype(plan.output.clone(), 0, dtype.into());
        return B::int_from_data(zeros, &lhs.device());
    }
    // Backends multiply matrices of i32 and i64 only. The low bits of a product are the same in a wider integer.
    let compute = match dtype {
        IntDType::I64 | IntDType::U64 => IntDType::I64,
        IntDType::U32 if B::supports_dtype(&lhs.device(), DType::I64) => IntDType::I64,
        _ => IntDType::I32,
    };
    let rows = |x: IntTensor<B>, order: &[usize], free: usize| {
        let rest = x.shape().iter().skip(plan.batch_shape.len()).copied().collect::<Vec<_>>();
        let x = B::int_expand(x, Shape::from([plan.batch_shape.clone(), rest].concat()));
        let x = B::int_reshape(B::int_permute(x, order), Shape::new([plan.batch, free, plan.k]));
        if dtype == compute { x } else { B::int_cast(x, compute) }
    };
    let lhs = rows(lhs, &plan.lhs_order, plan.m);
    let rhs = rows(rhs, &plan.rhs_order, plan.n);
    let out = B::int_matmul(lhs, B::int_swap_dims(rhs, 1, 2));
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

/// Rows longer than this are multiplied as matrices: a long sum term by term loses digits (50 ε at 65,536 terms of f32 in
/// flex), a matrix product sums in blocks (0.5 ε). Short rows are 20 to 40 times faster in one pass (pytorch#32591).
const LONGEST_ROW_SUM: usize = 512;

/// The dot product of each row of `(rows, k)` with its partner; one side may have a single row. Gives `(rows, 1)`.
fn row_dot<B: Backend>(lhs: FloatTensor<B>, rhs: FloatTensor<B>, k: usize) -> FloatTensor<B> {
    if k <= LONGEST_ROW_SUM {
        return B::float_sum_dim(B::float_mul(lhs, rhs), 1);
    }
    let rows = lhs.shape()[0].max(rhs.shape()[0]);
    let matrix = |x: FloatTensor<B>, [m, n]: [usize; 2]| {
        let batch = x.shape()[0];
        B::float_reshape(x, Shape::new([batch, m, n]))
    };
    B::float_reshape(B::float_matmul(matrix(lhs, [1, k]), matrix(rhs, [k, 1])), Shape::new([rows, 1]))
}

/// `x / max(‖x‖, floor)`, the norm over the last axes, `k` numbers together; see the module's page. Gives `(rows, k)`.
fn normalize<B: Backend>(x: FloatTensor<B>, k: usize, floor: f64, dtype: FloatDType) -> FloatTensor<B> {
    // A floor below the smallest normal number acts as that number, so no device divides by zero.
    let floor = floor.max(dtype.finfo().min_positive);
    let bools = get_or_init_device_settings::<B>(&x.device()).bool_dtype;
    // By way of one axis, so that the numbers lie in rows: in Burn 0.22.1 wgpu's reductions go wrong on permuted tensors of
    // rank 4, and fused ones on rank 3.
    let count = x.shape().num_elements();
    let x = B::float_reshape(B::float_reshape(x, Shape::new([count])), Shape::new([count / k, k]));

    let largest = B::float_max_dim(B::float_abs(B::float_detach(x.clone())), 1);
    let scale = B::float_clamp_min(largest.clone(), floor.into());
    let y = B::float_div(x, scale);

    let square = row_dot::<B>(y.clone(), y.clone(), k);
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

/// Brings rows with a batch of their own to `(batch, free, k)`; a batch of one row stays one, for the product to repeat.
fn repeat_batch<B: Backend>(x: FloatTensor<B>, own_batch: Shape, plan: &Plan, free: usize) -> FloatTensor<B> {
    let batch = if own_batch.num_elements() == 1 { 1 } else { plan.batch };
    let matrix = Shape::new([batch, free, plan.k]);
    if batch == own_batch.num_elements() {
        return B::float_reshape(x, matrix);
    }
    let tail = [free, plan.k];
    let own = Shape::from(own_batch.iter().chain(&tail).copied().collect::<Vec<_>>());
    let joint = Shape::from([&plan.batch_shape[..], &tail].concat());
    B::float_reshape(B::float_expand(B::float_reshape(x, own), joint), matrix)
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
    // The last sum makes zeros positive.
    B::float_add(B::float_add(nothing(lhs), nothing(rhs)), zeros.clone())
}
