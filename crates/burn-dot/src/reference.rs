//! The product composed from Burn's operations: permute, reshape, normalize, batched matmul. Gradients by autodiff.
//!
//! Every backend can run it, and every other path must agree with it.
//!
//! # The norm that never overflows
//!
//! `x / max(‖x‖, epsilon)` overflows in `‖x‖²` long before `‖x‖` does, and `‖x‖` has no gradient at zero. So:
//!
//! ```text
//! c = max(max|x|, epsilon)          a scale, held constant by the gradient
//! y = x / c                       every |y| ≤ 1
//! t = max(‖y‖, 1)                 ‖y‖ ≥ 1 exactly when ‖x‖ ≥ epsilon
//! u = y / t                     = x / max(‖x‖, epsilon)
//! ```
//!
//! Where `‖y‖ < 1` its square is replaced by 1, a constant, so the gradient of `u` is `g / epsilon`. Elsewhere it is
//! `(g − u (u·g)) / ‖x‖`, at `‖x‖ = epsilon` as well.

use alloc::{vec, vec::Vec};
use core::ops::Range;

use burn_core::backend::{
    Backend, TensorMetadata, get_or_init_device_settings,
    tensor::{BoolTensor, FloatTensor, IntTensor},
};
use burn_core::tensor::{DType, FloatDType, IntDType, Shape, Slice, TensorData};

use crate::{
    error::Operand,
    plan::{FloatOptions, Input, Plan, Sizes},
};

/// Whether both inputs have a single vector for each batch index.
fn is_of_rows(plan: &Plan) -> bool {
    plan.m == 1 && plan.n == 1
}

/// The product of float tensors.
pub(crate) fn float_dot<B: Backend>(
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
    plan: &Plan,
    options: FloatOptions,
) -> FloatTensor<B> {
    let output = options.output.unwrap_or(lhs.dtype().into());
    let compute = options.accumulator(lhs.dtype().into());
    if plan.is_trivial() {
        return zeros::<B>(&plan.output, output, &lhs.device());
    }
    let of_rows = is_of_rows(plan);
    let matrices = |x: FloatTensor<B>, side: Side| {
        let x = cast::<B>(x, compute);
        let x = match options.normalize {
            Some(epsilon) => UnitRows::<B>::new(side.rows::<B>(x), epsilon, compute).unit,
            None if of_rows => side.rows::<B>(x),
            None => side.views::<B>(x),
        };
        if of_rows { side.broadcast_rows::<B>(x) } else { side.broadcast_batch::<B>(x) }
    };
    let lhs = matrices(lhs, Side::lhs(plan));
    let rhs = matrices(rhs, Side::rhs(plan));
    let out = if of_rows { row_dot::<B>(lhs, rhs, plan.k) } else { matmul::<B>(lhs, B::float_swap_dims(rhs, 1, 2)) };
    let out = if options.normalize.is_some() { into_range::<B>(out) } else { out };
    reshape::<B>(cast::<B>(out, output), plan.output.clone())
}

/// The gradient of the product with respect to one input; the derivation is on the page of `backward.rs`.
pub(crate) fn float_dot_grad<B: Backend>(
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
    grad: FloatTensor<B>,
    plan: &Plan,
    options: FloatOptions,
    of: Operand,
) -> FloatTensor<B> {
    let dtype: FloatDType = lhs.dtype().into();
    let compute = options.accumulator(dtype);
    let (own, other, side, other_side) = match of {
        Operand::Lhs => (lhs, rhs, Side::lhs(plan), Side::rhs(plan)),
        Operand::Rhs => (rhs, lhs, Side::rhs(plan), Side::lhs(plan)),
    };
    if plan.is_trivial() {
        return zeros::<B>(&side.input.shape, dtype, &own.device());
    }
    let grad = cast::<B>(grad, compute);
    let other = cast::<B>(other, compute);
    let product = |other: FloatTensor<B>| {
        if is_of_rows(plan) {
            let grad = reshape::<B>(grad, Shape::new([plan.batch, 1]));
            return side.reduce_batch::<B>(B::float_mul(grad, other_side.broadcast_rows::<B>(other)));
        }
        let grad = reshape::<B>(grad, Shape::new([plan.batch, plan.m, plan.n]));
        let grad = match of {
            Operand::Lhs => grad,
            Operand::Rhs => B::float_swap_dims(grad, 1, 2),
        };
        let other = other_side.broadcast_batch::<B>(other);
        // A matrix product over one term is slow.
        let product = if other_side.free == 1 { B::float_mul(grad, other) } else { matmul::<B>(grad, other) };
        side.reduce_batch::<B>(product)
    };
    let Some(epsilon) = options.normalize else {
        return cast::<B>(side.back_in_place::<B>(product(other_side.views::<B>(other))), dtype);
    };
    let grad = product(UnitRows::<B>::new(other_side.rows::<B>(other), epsilon, compute).unit);
    let own = UnitRows::<B>::new(side.rows::<B>(cast::<B>(own, compute)), epsilon, compute);
    cast_finite::<B>(side.back_in_place::<B>(own.grad(grad)), dtype)
}

/// The gradients of the product with respect to both inputs.
pub(crate) fn float_dot_grads<B: Backend>(
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
    grad: FloatTensor<B>,
    plan: &Plan,
    options: FloatOptions,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let grad_lhs = float_dot_grad::<B>(lhs.clone(), rhs.clone(), grad.clone(), plan, options, Operand::Lhs);
    (grad_lhs, float_dot_grad::<B>(lhs, rhs, grad, plan, options, Operand::Rhs))
}

/// One input of a plan: how its axes become those of a matrix, and back.
struct Side<'a> {
    plan: &'a Plan,
    input: &'a Input,
    /// Product of its free sizes.
    free: usize,
}

impl<'a> Side<'a> {
    fn lhs(plan: &'a Plan) -> Self {
        Side { plan, input: &plan.lhs, free: plan.m }
    }

    fn rhs(plan: &'a Plan) -> Self {
        Side { plan, input: &plan.rhs, free: plan.n }
    }

    /// The batch axes along which the other input has more.
    fn broadcast_axes(&self) -> impl DoubleEndedIterator<Item = usize> {
        (0..self.plan.batch_shape.len()).filter(|&axis| self.input.shape[axis] != self.plan.batch_shape[axis])
    }

    /// The vectors to contract as the rows of a matrix, for reductions along them.
    fn rows<B: Backend>(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let rows = self.input.shape.iter().product::<usize>() / self.plan.k;
        in_memory_order::<B>(permute::<B>(x, &self.input.order), Shape::new([rows, self.plan.k]))
    }

    /// The same as `(batch, free, k)`, or `(batch, k)` where the product is of rows, for products only: a view, where the strides allow it.
    fn views<B: Backend>(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let batch = self.input.batch_shape().iter().product::<usize>();
        let shape = match is_of_rows(self.plan) {
            true => Shape::new([batch, self.plan.k]),
            false => Shape::new([batch, self.free, self.plan.k]),
        };
        reshape::<B>(permute::<B>(x, &self.input.order), shape)
    }

    /// [`broadcast_batch`](Self::broadcast_batch) of an input with one vector for each batch index, as `(batch, k)`.
    fn broadcast_rows<B: Backend>(&self, vectors: FloatTensor<B>) -> FloatTensor<B> {
        let Sizes { batch, k, .. } = **self.plan;
        let own = vectors.shape()[0];
        if own == 1 || own == batch {
            return vectors;
        }
        reshape::<B>(self.broadcast_batch::<B>(vectors), Shape::new([batch, k]))
    }

    /// Rows as `(batch, free, k)`, broadcast where the other input's batch is larger; a batch of one row stays one, for the product to
    /// broadcast.
    fn broadcast_batch<B: Backend>(&self, vectors: FloatTensor<B>) -> FloatTensor<B> {
        let Sizes { batch_shape, batch, k, .. } = &**self.plan;
        let own = self.input.batch_shape().iter().product::<usize>();
        if own == 1 || own == *batch {
            return reshape::<B>(vectors, Shape::new([own, self.free, *k]));
        }
        let mut vectors = vectors;
        for axis in self.broadcast_axes() {
            let outer = batch_shape[..axis].iter().product::<usize>();
            let inner = self.input.batch_shape()[axis + 1..].iter().product::<usize>() * self.free * k;
            let one = reshape::<B>(vectors, Shape::new([outer, 1, inner]));
            vectors = B::float_expand(one, Shape::new([outer, batch_shape[axis], inner]));
        }
        in_memory_order::<B>(vectors, Shape::new([*batch, self.free, *k]))
    }

    /// The opposite of [`broadcast_batch`](Self::broadcast_batch): sums `(batch, free, k)` over broadcast axes, into rows.
    fn reduce_batch<B: Backend>(&self, grad: FloatTensor<B>) -> FloatTensor<B> {
        let Sizes { batch_shape, k, .. } = &**self.plan;
        let mut grad = grad;
        for axis in self.broadcast_axes().rev() {
            let outer = batch_shape[..axis].iter().product::<usize>();
            let inner = self.input.batch_shape()[axis + 1..].iter().product::<usize>() * self.free * k;
            grad = B::float_sum_dim(in_memory_order::<B>(grad, Shape::new([outer, batch_shape[axis], inner])), 1);
        }
        let rows = self.input.batch_shape().iter().product::<usize>() * self.free;
        reshape::<B>(grad, Shape::new([rows, *k]))
    }

    /// The opposite of [`rows`](Self::rows).
    fn back_in_place<B: Backend>(&self, rows: FloatTensor<B>) -> FloatTensor<B> {
        let Input { shape, order, .. } = self.input;
        let ordered = order.iter().map(|&axis| shape[axis]).collect::<Vec<_>>();
        let mut inverse = vec![0; order.len()];
        for (place, &axis) in order.iter().enumerate() {
            inverse[axis] = place;
        }
        permute::<B>(reshape::<B>(rows, ordered.into()), &inverse)
    }
}

/// Reshaped, where the shape is another one: under fusion a view, too, is an operation, and may cost a pass.
fn reshape<B: Backend>(x: FloatTensor<B>, shape: Shape) -> FloatTensor<B> {
    if x.shape() == shape { x } else { B::float_reshape(x, shape) }
}

/// Permuted, where the order is another one.
fn permute<B: Backend>(x: FloatTensor<B>, order: &[usize]) -> FloatTensor<B> {
    if order.is_sorted() { x } else { B::float_permute(x, order) }
}

/// Reshaped, with the elements in memory in the order of the axes, by way of one axis: in Burn 0.22.1 the reductions of CubeCL backends
/// go wrong on some other layouts (`tests/suite/cubecl.rs` says which).
pub(crate) fn in_memory_order<B: Backend>(x: FloatTensor<B>, shape: Shape) -> FloatTensor<B> {
    let count = x.shape().num_elements();
    B::float_reshape(B::float_reshape(x, Shape::new([count])), shape)
}

/// The product of integer tensors in the dtype of the output, which holds every value of the inputs'; wraps as that dtype does.
pub(crate) fn int_dot<B: Backend>(lhs: IntTensor<B>, rhs: IntTensor<B>, plan: &Plan, output: Option<IntDType>) -> IntTensor<B> {
    let dtype = output.unwrap_or(lhs.dtype().into());
    if plan.is_trivial() {
        // From the host: in Burn 0.22.1 integer zeros made on wgpu with fusion hold what was in memory.
        let zeros = TensorData::full_dtype(plan.output.to_vec(), 0, dtype.into());
        return B::int_from_data(zeros, &lhs.device());
    }
    // Backends multiply matrices of i32 and i64 only. The low bits of a product are the same in a wider integer.
    let compute = match dtype {
        IntDType::I64 | IntDType::U64 => IntDType::I64,
        IntDType::U32 if B::supports_dtype(&lhs.device(), DType::I64) => IntDType::I64,
        _ => IntDType::I32,
    };
    let rows = |x: IntTensor<B>, order: &[usize], free: usize| {
        let shape = plan.batch_shape.iter().chain(&x.shape()[plan.batch_shape.len()..]).copied().collect();
        let x = B::int_expand(x, shape);
        let x = B::int_reshape(B::int_permute(x, order), Shape::new([plan.batch, free, plan.k]));
        match x.dtype() {
            dtype if dtype == DType::from(compute) => x,
            // In WGSL Burn's cast takes the highest bit for a sign.
            DType::U32 if compute == IntDType::I64 => low_bits::<B>(B::int_cast(x, compute), IntDType::U32),
            _ => B::int_cast(x, compute),
        }
    };
    let lhs = rows(lhs, &plan.lhs.order, plan.m);
    let rhs = rows(rhs, &plan.rhs.order, plan.n);
    let out = B::int_matmul(lhs, B::int_swap_dims(rhs, 1, 2));
    let out = if dtype == compute { out } else { B::int_cast(low_bits::<B>(out, dtype), dtype) };
    B::int_reshape(out, plan.output.clone())
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

pub(crate) fn cast<B: Backend>(x: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    if x.dtype() == DType::from(dtype) { x } else { B::float_cast(x, dtype) }
}

/// Casts without leaving the finite range of a narrower dtype.
pub(crate) fn cast_finite<B: Backend>(x: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    if x.dtype() == DType::from(dtype) {
        return x;
    }
    // Flex32 is stored as f32.
    let largest = if dtype == FloatDType::Flex32 { FloatDType::F32 } else { dtype }.finfo().max;
    B::float_cast(B::float_clamp(x, (-largest).into(), largest.into()), dtype)
}

/// Terms of a matrix product that Burn multiplies at once. Its own products of more lose digits on flex, where the `gemm` crate adds the
/// blocks of a sum one after the other, or every term where a side has a single row; and lose whole terms on wgpu (seen at 277,137 and more).
pub(crate) const LONGEST_PRODUCT: usize = 8192;

/// `(batch, m, k)` times `(batch, k, n)`. Products over parts of K are added in pairs.
fn matmul<B: Backend>(lhs: FloatTensor<B>, rhs: FloatTensor<B>) -> FloatTensor<B> {
    let k = rhs.shape()[1];
    matmul_over::<B>(&lhs, &rhs, 0..k)
}

fn matmul_over<B: Backend>(lhs: &FloatTensor<B>, rhs: &FloatTensor<B>, terms: Range<usize>) -> FloatTensor<B> {
    let Range { start, end } = terms;
    if end - start > LONGEST_PRODUCT {
        let middle = start + ((end - start) / 2).next_multiple_of(LONGEST_PRODUCT);
        return B::float_add(matmul_over::<B>(lhs, rhs, start..middle), matmul_over::<B>(lhs, rhs, middle..end));
    }
    let all = rhs.shape()[1] == end - start;
    let part = |x: &FloatTensor<B>, axis: usize| {
        if all {
            return x.clone();
        }
        let mut slices = [Slice::full(); 3];
        slices[axis] = Slice::new(start as isize, Some(end as isize), 1);
        B::float_slice(x.clone(), &slices)
    };
    B::float_matmul(part(lhs, 2), part(rhs, 1))
}

/// Rows longer than this are multiplied as matrices, by [`matmul`], which cuts long sums. Short rows are 20 to 40 times faster in one pass
/// (pytorch#32591).
pub(crate) const LONGEST_ROW_SUM: usize = 512;

/// The dot product of each row of `(rows, k)` with that of the other side, which may have a single one. Gives `(rows, 1)`.
fn row_dot<B: Backend>(lhs: FloatTensor<B>, rhs: FloatTensor<B>, k: usize) -> FloatTensor<B> {
    if k <= LONGEST_ROW_SUM {
        return B::float_sum_dim(B::float_mul(lhs, rhs), 1);
    }
    let rows = lhs.shape()[0].max(rhs.shape()[0]);
    let matrix = |x: FloatTensor<B>, [m, n]: [usize; 2]| {
        let batch = x.shape()[0];
        B::float_reshape(x, Shape::new([batch, m, n]))
    };
    B::float_reshape(matmul::<B>(matrix(lhs, [1, k]), matrix(rhs, [k, 1])), Shape::new([rows, 1]))
}

/// Rows divided by `max(‖x‖, epsilon)`; see the module's page.
struct UnitRows<B: Backend> {
    unit: FloatTensor<B>,
    /// The divisor in two factors, `c` and `t`, whose product may overflow.
    scale: FloatTensor<B>,
    norm: FloatTensor<B>,
    below_epsilon: BoolTensor<B>,
}

impl<B: Backend> UnitRows<B> {
    fn new(rows: FloatTensor<B>, epsilon: f64, dtype: FloatDType) -> Self {
        // An epsilon below the smallest normal number acts as that number, so no device divides by zero.
        let epsilon = epsilon.max(dtype.finfo().min_positive);
        let bools = get_or_init_device_settings::<B>(&rows.device()).bool_dtype;
        let k = rows.shape()[1];

        let largest = B::float_max_dim(B::float_abs(B::float_detach(rows.clone())), 1);
        let scale = B::float_clamp_min(largest.clone(), epsilon.into());
        let y = B::float_div(rows, scale.clone());

        let square = row_dot::<B>(y.clone(), y.clone(), k);
        // Both conditions say the same in exact arithmetic; a GPU's division may put ‖x/x‖ a little below 1.
        let below_epsilon = B::bool_and(
            B::float_lower_elem(B::float_detach(square.clone()), 1.0.into(), bools),
            B::float_lower_elem(largest, epsilon.into(), bools),
        );
        let square = B::float_mask_fill(square, below_epsilon.clone(), 1.0.into());
        // A step of Heron's method from a constant root: its value is the root, its gradient 1/(2 root). Burn takes the gradient of
        // `sqrt` through `powf`, which shaders do not have in f64.
        let root = B::float_sqrt(B::float_detach(square.clone()));
        let norm = B::float_mul_scalar(B::float_add(B::float_div(square, root.clone()), root), 0.5.into());
        UnitRows { unit: B::float_div(y, norm.clone()), scale, norm, below_epsilon }
    }

    /// The gradient of the rows, from that of the unit rows.
    fn grad(self, grad: FloatTensor<B>) -> FloatTensor<B> {
        let k = grad.shape()[1];
        let along = row_dot::<B>(self.unit.clone(), grad.clone(), k);
        let along = B::float_mask_fill(along, self.below_epsilon, 0.0.into());
        let perpendicular = B::float_sub(grad, B::float_mul(self.unit, along));
        B::float_div(B::float_div(perpendicular, self.norm), self.scale)
    }
}

/// Clamps to [-1, 1]; the gradient passes as if nothing had happened. NaN stays NaN.
fn into_range<B: Backend>(out: FloatTensor<B>) -> FloatTensor<B> {
    let raw = B::float_detach(out.clone());
    let clamped = B::float_clamp(raw.clone(), (-1.0).into(), 1.0.into());
    B::float_add(out, B::float_sub(clamped, raw))
}

/// Zeros from the host: Burn 0.22.1 may fuse an operation with an empty one, if their shapes differ by a 1 for a 0 alone. The kernel then
/// never runs, and the output stays unwritten.
fn zeros<B: Backend>(shape: &[usize], dtype: FloatDType, device: &B::Device) -> FloatTensor<B> {
    B::float_from_data(TensorData::full_dtype(shape.to_vec(), 0.0, dtype.into()), device)
}
