//! Kernels for flex: the entry point from tensors to elements in memory.
//!
//! A tensor passes `mod` (dtype, layout) → `memory` (who may read and write what) → `rows` or `matrices` (which loops) → `kernel` (the
//! loops) → `simd` (instruction sets), on the way described by `space` (axes and strides), packed by `runs` and cut into tasks by `threads`.
//! `pool` has the memory of results, `norms` the factors of normalized vectors. Matrices are copied by `blocks`, where they must be, and
//! multiplied by the `gemm` crate; those of bf16 by `bfloat`, where the processor has an instruction for them.
//!
//! Sizes were checked by the plan, and that they can be counted is checked here ([`space::is_countable`]); strides are checked where a
//! tensor becomes a pointer ([`base_ptr`]). Sizes and strides then go on as one value, [`Space`], whose indices lie within the tensors. On
//! that all `unsafe` below rests, and on what each kernel shows where it writes: tasks write to elements of their own.
//!
//! What the kernels leave to the composition, by returning `None`: products without terms or without results, dtypes without a kernel
//! ([`has_kernel`]; `ops` casts them first), and vectors whose norms lie so far from 1 that their plain product would overflow or lose digits.

use burn_core::backend::flex::{FlexTensor, Layout};
use burn_core::tensor::{DType, Element as BurnElement, FloatDType, Shape, TensorData, bf16, f16};

use crate::{
    error::Operand,
    plan::{FloatOptions, Plan, SavedBy},
};

#[cfg_attr(
    not(all(target_arch = "x86_64", feature = "x86-v4")),
    allow(dead_code, reason = "no instruction for bf16 is used there")
)]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the promise made to `multiply` holds for all of them")]
mod bfloat;
mod gemm;
mod kernel;
mod matrices;
mod memory;
mod norms;
mod pool;
mod rows;
mod runs;
mod simd;
mod space;
#[cfg(test)]
mod tests;
mod threads;

pub(crate) use pool::release as release_memory;

use kernel::Element;
use matrices::Matrices;
use memory::{Differentiated, Fresh, base_ptr};
use rows::{KeptRow, Rows};
use space::{NX, NY, Space, Strides};

/// What a forward pass gives.
pub(crate) struct Forward {
    pub out: FlexTensor,
    pub saved: Option<Saved>,
}

/// Norms, and what else they come with, saved for the backward pass.
#[derive(Clone)]
pub(crate) struct Saved {
    pub norms: FlexTensor,
    /// Who alone can read them.
    pub by: SavedBy,
}

impl Saved {
    /// The first element, where these are so many of this dtype, contiguous, by the path that is to read them.
    fn read_by<T: Stored>(&self, by: SavedBy, count: usize) -> Option<*const T> {
        let Saved { norms, by: saved_by } = self;
        let fits = norms.dtype() == T::dtype() && norms.is_contiguous() && norms.layout().num_elements() == count;
        (*saved_by == by && fits).then(|| base_ptr::<T>(norms))
    }
}

/// The gradients of the inputs, where they were asked for.
pub(crate) struct Grads {
    pub lhs: Option<FlexTensor>,
    pub rhs: Option<FlexTensor>,
}

/// Of which inputs the gradient is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub lhs: bool,
    pub rhs: bool,
}

impl Wanted {
    pub const BOTH: Wanted = Wanted { lhs: true, rhs: true };

    pub fn only(of: Operand) -> Self {
        Wanted { lhs: of == Operand::Lhs, rhs: of == Operand::Rhs }
    }
}

/// Whether there is a kernel from inputs of a dtype to an output of another.
pub(crate) fn has_kernel(input: FloatDType, output: FloatDType) -> bool {
    use FloatDType::{BF16, F16, F32, F64};
    matches!((input, output), (F64, F64) | (F32, F32) | (F16, F16 | F32) | (BF16, BF16 | F32))
}

/// The product, and, if `save` is set, what [`float_dot_grads`] can use again, where that is worth its memory.
pub(crate) fn float_dot(lhs: &FlexTensor, rhs: &FlexTensor, plan: &Plan, options: FloatOptions, save: bool) -> Option<Forward> {
    if plan.is_trivial() || !space::is_countable(plan) {
        return None;
    }
    let floor = options.normalize;
    match (lhs.dtype(), options.output.map_or(lhs.dtype(), DType::from)) {
        (DType::F32, DType::F32) => forward::<f32, f32>(lhs, rhs, plan, floor, save),
        (DType::F64, DType::F64) => forward::<f64, f64>(lhs, rhs, plan, floor, save),
        (DType::F16, DType::F16) => forward::<f16, f16>(lhs, rhs, plan, floor, save),
        (DType::F16, DType::F32) => forward::<f16, f32>(lhs, rhs, plan, floor, save),
        (DType::BF16, DType::BF16) => forward::<bf16, bf16>(lhs, rhs, plan, floor, save),
        (DType::BF16, DType::F32) => forward::<bf16, f32>(lhs, rhs, plan, floor, save),
        _ => None,
    }
}

/// The gradients of the product that are wanted, or the inputs again. An input that nobody else holds may be overwritten by its gradient.
#[expect(clippy::result_large_err, reason = "not an error: the inputs again, moved once in a backward pass")]
pub(crate) fn float_dot_grads(
    inputs: [FlexTensor; 2],
    grad: &FlexTensor,
    saved: Option<&Saved>,
    plan: &Plan,
    options: FloatOptions,
    wanted: Wanted,
) -> Result<Grads, [FlexTensor; 2]> {
    if plan.is_trivial() || !space::is_countable(plan) {
        return Err(inputs);
    }
    let floor = options.normalize;
    match (inputs[0].dtype(), grad.dtype()) {
        (DType::F32, DType::F32) => backward::<f32, f32>(inputs, grad, saved, plan, floor, wanted),
        (DType::F64, DType::F64) => backward::<f64, f64>(inputs, grad, saved, plan, floor, wanted),
        (DType::F16, DType::F16) => backward::<f16, f16>(inputs, grad, saved, plan, floor, wanted),
        (DType::F16, DType::F32) => backward::<f16, f32>(inputs, grad, saved, plan, floor, wanted),
        (DType::BF16, DType::BF16) => backward::<bf16, bf16>(inputs, grad, saved, plan, floor, wanted),
        (DType::BF16, DType::F32) => backward::<bf16, f32>(inputs, grad, saved, plan, floor, wanted),
        _ => Err(inputs),
    }
}

/// An [`Element`] that flex stores.
trait Stored: Element<Real: BurnElement + bytemuck::Pod> + BurnElement + bytemuck::Pod {}
impl<T: Element<Real: BurnElement + bytemuck::Pod> + BurnElement + bytemuck::Pod> Stored for T {}

/// What is saved for a backward pass takes at most this part of the inputs: beside short vectors it would be too much.
const SAVED_PART: usize = 8;

fn forward<T: Stored, O: Stored + Element<Real = T::Real>>(
    lhs: &FlexTensor,
    rhs: &FlexTensor,
    plan: &Plan,
    floor: Option<f64>,
    save: bool,
) -> Option<Forward> {
    let mut out = Fresh::<O>::new(Layout::contiguous(plan.output.clone()));
    let space = Space::new(
        plan,
        Strides { lhs: lhs.layout().strides(), rhs: rhs.layout().strides(), out: out.strides(), ..Default::default() },
    );
    let (x, y) = (base_ptr::<T>(lhs), base_ptr::<T>(rhs));
    let inputs = lhs.layout().num_elements().saturating_add(rhs.layout().num_elements()).saturating_mul(size_of::<T>());
    let worth = |count: usize, size: usize| save && floor.is_some() && count.saturating_mul(size) <= inputs / SAVED_PART;
    let Some(vector) = choose_vectors(lhs, rhs, plan, true) else {
        let counts = [space.vectors(NX), space.vectors(NY)];
        let norms = match floor {
            // SAFETY: every index of `space` lies within the tensors, as their strides say and `base_ptr` checked, and nothing is empty.
            Some(floor) => Some(unsafe { norms::of_both(x, y, &space, counts, floor) }?),
            None => None,
        };
        let both = norms.as_ref().map(|norms| norms.split_at(counts[0]).into());
        // SAFETY: as above, also for the norms: there is one for each vector. Nobody else has the output.
        unsafe { matrices::forward(Matrices { x, y, out: out.as_mut_ptr() }, space, both) };
        let saved = norms.filter(|norms| worth(norms.len(), size_of::<T::Real>())).map(|norms| {
            let shape = [norms.len()];
            Saved { norms: FlexTensor::from_data(TensorData::new(norms, shape)), by: SavedBy::Matrices }
        });
        return Some(Forward { out: out.into_tensor(), saved });
    };
    let (x, y, space) = match vector {
        Operand::Lhs => (x, y, space),
        Operand::Rhs => (y, x, space.swapped()),
    };
    let shape = saved_rows(plan);
    let read_again = choose_vectors(lhs, rhs, plan, false).is_some();
    let mut saved = (read_again && worth(shape.iter().product(), size_of::<f64>()))
        .then(|| Fresh::<f64>::new(Layout::contiguous(Shape::from(shape))));
    let kept = saved.as_mut().map(|saved| saved.as_mut_ptr().cast());
    // SAFETY: every index of `space` lies within the tensors, as their strides say and `base_ptr` checked, and nothing is empty. Nobody
    // else has the output and what is saved, which has a row for each of the output's elements.
    let complete = unsafe { rows::forward(Rows { x, y, out: out.as_mut_ptr(), dx: None, dy: None, kept }, &space, floor) };
    let saved = saved.map(|saved| Saved { norms: saved.into_tensor(), by: SavedBy::Rows(vector) });
    complete.then(|| Forward { out: out.into_tensor(), saved })
}

/// The shape of what is saved of rows: a [`KeptRow`] for each element of the output.
fn saved_rows(plan: &Plan) -> [usize; 2] {
    [plan.batch * plan.m * plan.n, size_of::<KeptRow>() / size_of::<f64>()]
}

#[expect(clippy::result_large_err, reason = "not an error: the inputs again, moved once in a backward pass")]
fn backward<T: Stored, O: Stored + Element<Real = T::Real>>(
    [lhs, rhs]: [FlexTensor; 2],
    grad: &FlexTensor,
    saved: Option<&Saved>,
    plan: &Plan,
    floor: Option<f64>,
    wanted: Wanted,
) -> Result<Grads, [FlexTensor; 2]> {
    // A vector with many partners collects their sum, and so does one that is broadcast along the batch: of the two inputs it must be
    // the same one.
    let vector = choose_vectors(&lhs, &rhs, plan, false);
    // Rows are overwritten by their gradients one by one, unless the kernel might stop half-way. The gradient of a plain matrix product
    // needs only the other input: the second gradient overwrites its input.
    let (over_lhs, over_rhs) = match vector {
        Some(_) => (floor.is_none() || rows::never_stops::<T>(), floor.is_none() || rows::never_stops::<T>()),
        None => (floor.is_none(), false),
    };
    let mut lhs = Differentiated::<T>::new(lhs, wanted.lhs, over_lhs);
    let mut rhs = Differentiated::<T>::new(rhs, wanted.rhs, over_rhs);
    let ((lhs_strides, grad_lhs), (rhs_strides, grad_rhs)) = (lhs.strides(), rhs.strides());
    let out = grad.layout().strides();
    let space = Space::new(plan, Strides { lhs: lhs_strides, rhs: rhs_strides, grad_lhs, grad_rhs, out });
    let complete = match vector {
        Some(vector) => rows_backward::<T, O>(&mut lhs, &mut rhs, grad, saved, plan, space, floor, vector),
        None => matrices_backward::<T, O>(&mut lhs, &mut rhs, grad, saved, space, floor),
    };
    match complete {
        true => Ok(Grads { lhs: lhs.into_gradient(), rhs: rhs.into_gradient() }),
        false => Err([lhs.into_input(), rhs.into_input()]),
    }
}

/// False where the composition must do it.
#[expect(clippy::too_many_arguments, reason = "one place calls it")]
fn rows_backward<T: Stored, O: Stored + Element<Real = T::Real>>(
    lhs: &mut Differentiated<T>,
    rhs: &mut Differentiated<T>,
    grad: &FlexTensor,
    saved: Option<&Saved>,
    plan: &Plan,
    space: Space,
    floor: Option<f64>,
    vector: Operand,
) -> bool {
    let in_place = lhs.is_in_place() || rhs.is_in_place();
    let (x, y, space) = match vector {
        Operand::Lhs => (lhs, rhs, space),
        Operand::Rhs => (rhs, lhs, space.swapped()),
    };
    // Only read.
    let out = base_ptr::<O>(grad).cast_mut();
    let kept = saved.and_then(|saved| saved.read_by::<f64>(SavedBy::Rows(vector), saved_rows(plan).iter().product()));
    let kept = kept.map(|kept| kept.cast_mut().cast());
    let rows = Rows { x: x.input(), y: y.input(), out, dx: x.gradient(), dy: y.gradient(), kept };
    // SAFETY: every index of `space` lies within the tensors, as their strides say and `base_ptr` checked, and nothing is empty; what was
    // saved has a row for each of the output's elements. Nobody else has the gradients, which are the inputs' own where `in_place` says so.
    unsafe { rows::backward(rows, &space, floor, in_place) }
}

/// False where the composition must do it.
fn matrices_backward<T: Stored, O: Stored + Element<Real = T::Real>>(
    lhs: &mut Differentiated<T>,
    rhs: &mut Differentiated<T>,
    grad: &FlexTensor,
    saved: Option<&Saved>,
    space: Space,
    floor: Option<f64>,
) -> bool {
    let (x, y) = (lhs.input(), rhs.input());
    let counts = [space.vectors(NX), space.vectors(NY)];
    let saved = saved.and_then(|saved| saved.read_by::<T::Real>(SavedBy::Matrices, counts[0] + counts[1]));
    let made;
    let norms = match (floor, saved) {
        (None, _) => None,
        // SAFETY: there are so many, contiguous, and nobody writes to what was saved.
        (Some(_), Some(saved)) => Some(unsafe { core::slice::from_raw_parts(saved, counts[0] + counts[1]) }),
        (Some(floor), None) => {
            // SAFETY: every index of `space` lies within the inputs, as their strides say and `base_ptr` checked, and nothing is empty.
            let Some(norms) = (unsafe { norms::of_both(x, y, &space, counts, floor) }) else { return false };
            made = norms;
            Some(&made[..])
        }
    };
    // Only read.
    let out = base_ptr::<O>(grad).cast_mut();
    let norms = norms.map(|norms| norms.split_at(counts[0]).into());
    // SAFETY: as above, also for the gradients and the norms, of which there is one for each vector. Nobody else has the gradients; that
    // of lhs is in its place only where there are no norms.
    unsafe { matrices::backward(Matrices { x, y, out }, (lhs.gradient(), rhs.gradient()), space, norms) };
    true
}

/// The operand with a single vector for each batch index, if the product runs as rows: not so where neighbours in memory belong to
/// different vectors of the other operand, which is a matrix then. One whose partners are broadcast along the batch is chosen last, and
/// only if that is allowed. Strides decide whether an operand is chosen, never which: backward must agree with what forward saved.
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
        let whole = shape.iter().zip(plan.batch_shape.iter()).all(|(own, joint)| own == joint);
        alone && (whole || repeated_too) && !across(others, order)
    };
    let find = |repeated_too| [Operand::Lhs, Operand::Rhs].into_iter().find(|&x| meets(x, repeated_too));
    find(false).or_else(|| if repeated_partners { find(true) } else { None })
}
