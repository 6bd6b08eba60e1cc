//! Kernels for flex: the door between tensors and numbers in memory.
//!
//! A tensor passes `mod` (dtype, layout, the output's memory) → `rows` or `matrices` (which loops) → `kernel` (the loops) → `level`
//! (instructions), on the way described by `space` (axes and steps), brought in line by `runs` and cut into tasks by `threads`. `norms` has the factors of normalized
//! vectors. Matrices are copied by `blocks`, where they must be, and multiplied by the `gemm` crate; those of bf16 by `bfloat`, where the
//! processor has an instruction for them.
//!
//! Sizes were checked by the plan; strides are checked here, at the door ([`first`]). Sizes and strides then go on as one value,
//! [`Space`], whose indices lie within the tensors. On that all `unsafe` below rests, and on two things that each kernel shows where it
//! writes: tasks write to places of their own, and together to every place of a result.
//!
//! What the kernels leave to the composition, by returning `None`: products without terms or without results, dtypes that are rarely
//! mixed (f32 in, f16 out), and vectors whose norms lie so far from 1 that their plain product would overflow or lose digits.

use alloc::vec::Vec;

use burn_core::backend::{
    TensorMetadata,
    flex::{FlexTensor, Layout},
};
use burn_core::tensor::{Bytes, DType, Element as BurnElement, Shape, TensorData, bf16, f16};

use crate::{
    error::Operand,
    plan::{FloatOptions, Plan},
};

#[cfg_attr(
    not(all(target_arch = "x86_64", feature = "x86-v4")),
    allow(dead_code, reason = "no instruction for bf16 is used there")
)]
mod bfloat;
mod gemm;
mod kernel;
mod level;
mod matrices;
mod norms;
mod rows;
mod runs;
mod space;
#[cfg(test)]
mod tests;
mod threads;

use kernel::Element;
use matrices::Matrices;
use rows::{KeptRow, Rows};
use space::{Space, Strides};

/// The product, and, if asked to keep it, what [`float_dot_grads`] can use again, where that is worth its memory.
pub(crate) fn float_dot(
    lhs: &FlexTensor,
    rhs: &FlexTensor,
    plan: &Plan,
    options: FloatOptions,
    keep: bool,
) -> Option<(FlexTensor, Option<FlexTensor>)> {
    if plan.is_trivial() {
        return None;
    }
    let floor = options.normalize;
    match (lhs.dtype(), options.output.map_or(lhs.dtype(), DType::from)) {
        (DType::F32, DType::F32) => forward::<f32, f32>(lhs, rhs, plan, floor, keep),
        (DType::F64, DType::F64) => forward::<f64, f64>(lhs, rhs, plan, floor, keep),
        (DType::F16, DType::F16) => forward::<f16, f16>(lhs, rhs, plan, floor, keep),
        (DType::F16, DType::F32) => forward::<f16, f32>(lhs, rhs, plan, floor, keep),
        (DType::BF16, DType::BF16) => forward::<bf16, bf16>(lhs, rhs, plan, floor, keep),
        (DType::BF16, DType::F32) => forward::<bf16, f32>(lhs, rhs, plan, floor, keep),
        _ => None,
    }
}

/// The gradient of the product with respect to one input, or to both: those for which `wanted` is true. An input that nobody else
/// holds may be overwritten by its gradient, but not if the result is `None`.
pub(crate) fn float_dot_grads(
    lhs: &mut FlexTensor,
    rhs: &mut FlexTensor,
    grad: &FlexTensor,
    kept: Option<&FlexTensor>,
    plan: &Plan,
    options: FloatOptions,
    wanted: [bool; 2],
) -> Option<[Option<FlexTensor>; 2]> {
    if plan.is_trivial() {
        return None;
    }
    let floor = options.normalize;
    match (lhs.dtype(), grad.dtype()) {
        (DType::F32, DType::F32) => backward::<f32, f32>(lhs, rhs, grad, kept, plan, floor, wanted),
        (DType::F64, DType::F64) => backward::<f64, f64>(lhs, rhs, grad, kept, plan, floor, wanted),
        (DType::F16, DType::F16) => backward::<f16, f16>(lhs, rhs, grad, kept, plan, floor, wanted),
        (DType::F16, DType::F32) => backward::<f16, f32>(lhs, rhs, grad, kept, plan, floor, wanted),
        (DType::BF16, DType::BF16) => backward::<bf16, bf16>(lhs, rhs, grad, kept, plan, floor, wanted),
        (DType::BF16, DType::F32) => backward::<bf16, f32>(lhs, rhs, grad, kept, plan, floor, wanted),
        _ => None,
    }
}

/// An [`Element`] that flex stores.
trait Stored: Element<Real: BurnElement + bytemuck::Pod> + BurnElement + bytemuck::Pod {}
impl<T: Element<Real: BurnElement + bytemuck::Pod> + BurnElement + bytemuck::Pod> Stored for T {}

/// What is kept for a backward pass takes at most this part of the inputs: beside short vectors it would be too much.
const KEPT_PART: usize = 8;

fn forward<T: Stored, O: Stored + Element<Real = T::Real>>(
    lhs: &FlexTensor,
    rhs: &FlexTensor,
    plan: &Plan,
    floor: Option<f64>,
    keep: bool,
) -> Option<(FlexTensor, Option<FlexTensor>)> {
    let out = Memory::<O>::fresh(Layout::contiguous(Shape::from(plan.output.clone())));
    let space = Space::new(
        plan,
        Strides { lhs: lhs.layout().strides(), rhs: rhs.layout().strides(), out: out.layout.strides(), ..Default::default() },
    );
    let (x, y) = (first::<T>(lhs), first::<T>(rhs));
    let inputs = size_of::<T>() * (lhs.layout().num_elements() + rhs.layout().num_elements());
    let worth = |bytes: usize| keep && floor.is_some() && bytes <= inputs / KEPT_PART;
    // SAFETY: `space` walks the tensors by their own strides; the output, and what is kept, are fresh. The kernels write all of them.
    unsafe {
        if let Some(vectors) = choose_vectors(lhs, rhs, plan, true) {
            let (x, y, space) = match vectors {
                Operand::Lhs => (x, y, space),
                Operand::Rhs => (y, x, space.swapped()),
            };
            let shape = kept_rows(plan);
            let again = choose_vectors(lhs, rhs, plan, false).is_some();
            let kept = (again && worth(shape.num_elements() * size_of::<f64>()))
                .then(|| Memory::<f64>::fresh(Layout::contiguous(shape)));
            let at = kept.as_ref().map(|kept| kept.at.cast());
            rows::forward(Rows { x, y, out: out.at, dx: None, dy: None, kept: at }, &space, floor)
                .then(|| (out.into_tensor(lhs), kept.map(|kept| kept.into_tensor(lhs))))
        } else {
            let counts = vectors_of_each(lhs, rhs, plan);
            let norms = match floor {
                Some(floor) => Some(norms::of_both(x, y, &space, counts, floor)?),
                None => None,
            };
            let both = norms.as_ref().map(|norms| norms.split_at(counts[0]).into());
            matrices::forward(Matrices { x, y, out: out.at }, space, both);
            let kept = norms.filter(|norms| worth(size_of_val(&norms[..]))).map(|norms| {
                let shape = [norms.len()];
                FlexTensor::from_data(TensorData::new(norms, shape))
            });
            Some((out.into_tensor(lhs), kept))
        }
    }
}

/// How many vectors each input has.
fn vectors_of_each(lhs: &FlexTensor, rhs: &FlexTensor, plan: &Plan) -> [usize; 2] {
    [lhs, rhs].map(|x| x.layout().num_elements() / plan.k)
}

/// The shape of what is kept of rows. That of matrices has one axis.
fn kept_rows(plan: &Plan) -> Shape {
    Shape::new([plan.batch * plan.m * plan.n, size_of::<KeptRow>() / size_of::<f64>()])
}

fn backward<T: Stored, O: Stored + Element<Real = T::Real>>(
    lhs: &mut FlexTensor,
    rhs: &mut FlexTensor,
    grad: &FlexTensor,
    kept: Option<&FlexTensor>,
    plan: &Plan,
    floor: Option<f64>,
    wanted: [bool; 2],
) -> Option<[Option<FlexTensor>; 2]> {
    // A vector with many partners collects their sum, and so does one that is repeated along the batch: of the two inputs it must be
    // the same one.
    let vectors = choose_vectors(lhs, rhs, plan, false);
    // Rows give way to their gradients one by one, unless the kernel might stop half-way. The gradient of a plain matrix product needs
    // only the other input: the second gradient takes the place of its input.
    let reuse = if vectors.is_some() { [floor.is_none() || rows::never_stops::<T>(); 2] } else { [floor.is_none(), false] };

    let layouts = [lhs.layout().clone(), rhs.layout().clone()];
    let memory = |x: &mut FlexTensor, wanted: bool, reuse: bool| {
        wanted.then(|| {
            let own = if reuse { Memory::<T>::of(x) } else { None };
            own.unwrap_or_else(|| Memory::fresh(layout_of_gradient(x)))
        })
    };
    let (dl, dr) = (memory(lhs, wanted[0], reuse[0]), memory(rhs, wanted[1], reuse[1]));
    let strides = |memory: &Option<Memory<T>>| memory.as_ref().map_or(Vec::new(), |memory| memory.layout.strides().to_vec());
    let space = Space::new(
        plan,
        Strides {
            lhs: layouts[0].strides(),
            rhs: layouts[1].strides(),
            grad_lhs: &strides(&dl),
            grad_rhs: &strides(&dr),
            out: grad.layout().strides(),
        },
    );
    let in_place = |memory: &Option<Memory<T>>| memory.as_ref().is_some_and(|memory| memory.fresh.is_none());
    let input = |x: &FlexTensor, memory: &Option<Memory<T>>| match memory {
        Some(Memory { at, fresh: None, .. }) => at.cast_const(),
        _ => first::<T>(x),
    };
    let (x, y) = (input(lhs, &dl), input(rhs, &dr));
    // Only read.
    let out = first::<O>(grad).cast_mut();
    let at = |memory: &Option<Memory<T>>| memory.as_ref().map(|memory| memory.at);
    let (dx, dy) = (at(&dl), at(&dr));
    // SAFETY: `space` walks the tensors by their own strides; the gradients are fresh, or in the place of their own inputs. What was kept
    // has the shape that `forward` gave it, and its numbers lie in line.
    let trusted = unsafe {
        if let Some(vectors) = vectors {
            let (x, y, dx, dy, space) = match vectors {
                Operand::Lhs => (x, y, dx, dy, space),
                Operand::Rhs => (y, x, dy, dx, space.swapped()),
            };
            let kept = kept.filter(|kept| kept.shape() == kept_rows(plan)).map(|kept| first::<f64>(kept).cast_mut().cast());
            rows::backward(Rows { x, y, out, dx, dy, kept }, &space, floor, in_place(&dl) || in_place(&dr))
        } else {
            let counts = vectors_of_each(lhs, rhs, plan);
            let kept = kept.filter(|kept| kept.shape() == Shape::new([counts.iter().sum()])).map(|kept| kept.storage());
            let made;
            let norms = match (floor, kept) {
                (None, _) => None,
                (Some(_), Some(kept)) => Some(kept),
                (Some(floor), None) => {
                    made = norms::of_both(x, y, &space, counts, floor)?;
                    Some(&made[..])
                }
            };
            matrices::backward(Matrices { x, y, out }, (dx, dy), space, norms.map(|norms| norms.split_at(counts[0]).into()));
            true
        }
    };
    // SAFETY: the kernels wrote every number of the gradients.
    trusted.then(|| unsafe { [dl.map(|dl| dl.into_tensor(lhs)), dr.map(|dr| dr.into_tensor(rhs))] })
}

/// The input that has a single vector for each batch index, if it can meet its partners one by one: not so where the partners lie across
/// memory, neighbours being numbers of different partners. They are taken as a matrix then. One whose partners are repeated along the
/// batch is chosen last, and only if that is allowed. How the inputs lie decides whether one is chosen, never which: what the forward pass
/// kept of `x` and `y` is so what the gradients take it for.
fn choose_vectors(lhs: &FlexTensor, rhs: &FlexTensor, plan: &Plan, repeated_partners: bool) -> Option<Operand> {
    let across = |x: &FlexTensor, order: &[usize]| {
        let layout = x.layout();
        let side_by_side = |axes: &[usize]| axes.iter().any(|&axis| layout.shape()[axis] > 1 && layout.strides()[axis] == 1);
        let (free, contracted) =
            order[plan.batch_shape.len()..].split_at(order.len() - plan.batch_shape.len() - plan.contracted);
        side_by_side(free) && !side_by_side(contracted)
    };
    let meets = |x: Operand, repeated_too: bool| {
        let (alone, others, shape, order) = match x {
            Operand::Lhs => (plan.m == 1, rhs, &plan.rhs_shape, &plan.rhs_order),
            Operand::Rhs => (plan.n == 1, lhs, &plan.lhs_shape, &plan.lhs_order),
        };
        let whole = shape.iter().zip(&plan.batch_shape).all(|(own, joint)| own == joint);
        alone && (whole || repeated_too) && !across(others, order)
    };
    let find = |repeated_too| [Operand::Lhs, Operand::Rhs].into_iter().find(|&x| meets(x, repeated_too));
    find(false).or_else(|| if repeated_partners { find(true) } else { None })
}

/// The first number of a tensor that is not empty, all of whose numbers lie within its memory.
///
/// # Panics
///
/// Where they do not, as flex itself would when it came to read them.
fn first<T: Stored>(x: &FlexTensor) -> *const T {
    let (layout, storage) = (x.layout(), x.storage::<T>());
    let (mut least, mut most) = (layout.start_offset() as isize, layout.start_offset() as isize);
    for (&size, &stride) in layout.shape().iter().zip(layout.strides()) {
        let reach = (size as isize - 1).saturating_mul(stride);
        least = least.saturating_add(reach.min(0));
        most = most.saturating_add(reach.max(0));
    }
    assert!(
        least >= 0 && (most as usize) < storage.len(),
        "a tensor of {} numbers whose layout reaches from {least} to {most}: {layout:?}",
        storage.len()
    );
    storage[layout.start_offset()..].as_ptr()
}

/// A gradient lies in memory as its input does, so that both are walked in one order; unless the input has gaps or repetitions.
fn layout_of_gradient(x: &FlexTensor) -> Layout {
    let layout = x.layout();
    if is_dense(layout) {
        Layout::new(layout.shape().clone(), layout.strides().to_vec(), 0)
    } else {
        Layout::contiguous(x.shape())
    }
}

/// Whether each number of a stretch of memory is met once.
fn is_dense(layout: &Layout) -> bool {
    let mut axes: Vec<_> =
        layout.strides().iter().copied().zip(layout.shape().iter().copied()).filter(|axis| axis.1 > 1).collect();
    axes.sort_unstable();
    let mut next = 1;
    axes.iter().all(|&(stride, size)| core::mem::replace(&mut next, stride * size as isize) == stride)
}

/// Memory for a result.
struct Memory<T> {
    at: *mut T,
    layout: Layout,
    /// Not yet written: zeroing it first would cost a pass. `None` where it is that of an input.
    fresh: Option<Vec<T>>,
}

impl<T: Stored> Memory<T> {
    fn fresh(layout: Layout) -> Self {
        let mut numbers = Vec::with_capacity(layout.num_elements());
        Memory { at: numbers.as_mut_ptr(), layout, fresh: Some(numbers) }
    }

    /// That of an input, if nobody else holds it and all of it is the input's.
    fn of(x: &mut FlexTensor) -> Option<Self> {
        let layout = x.layout().clone();
        let numbers = x.try_storage_mut::<T>()?;
        let whole = layout.start_offset() == 0 && numbers.len() == layout.num_elements() && is_dense(&layout);
        whole.then(|| Memory { at: numbers.as_mut_ptr(), layout, fresh: None })
    }

    /// The result, where `input` is what the memory was asked for.
    ///
    /// # Safety
    ///
    /// Every number has been written.
    unsafe fn into_tensor(self, input: &FlexTensor) -> FlexTensor {
        let Memory { layout, fresh, .. } = self;
        match fresh {
            None => input.clone(),
            Some(mut numbers) => {
                // SAFETY: the capacity is the number of elements, and the caller wrote them.
                unsafe { numbers.set_len(layout.num_elements()) };
                FlexTensor::new(Bytes::from_elems(numbers), layout, T::dtype())
            }
        }
    }
}
