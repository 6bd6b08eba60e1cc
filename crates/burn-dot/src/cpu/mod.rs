//! Kernels for flex: the entry point from tensors to elements in memory.
//!
//! A tensor passes `ops` (casts, or the composition) → `mod` (dtypes, path) → `memory` (who may read and write what) →
//! `reduction`, or `matrices` and `gemm` → `simd` (chooses the instruction set for a task) → `loops`, or `gemm`'s micro-kernel. `layout` has
//! its axes and strides, `norms` the factors of normalized vectors, `pool` the memory of results, `streaming` its non-temporal stores,
//! `threads` the sharing of work.
//! CONTRIBUTING.md follows one tensor all the way.
//!
//! Sizes were checked by the [`Plan`], also that they can be counted, and [`assert_planned`] checks that the tensors have them; strides are
//! checked where a tensor becomes a pointer ([`base_ptr`], or `InPlace` of `memory`, which takes whole tensors only). Sizes and strides
//! then go on as one value, [`Space`], whose indices are within the tensors. On that all `unsafe` below rests, and on what each kernel
//! shows where it writes: tasks write to elements of their own.
//!
//! What the kernels hand back, for the composition: products without terms or without results, dtypes without a kernel ([`has_kernel`];
//! `ops` casts them first), and, in matrices and in f64, vectors whose norms are so far from 1 that plain products overflow or lose digits.

use burn_core::backend::flex::{FlexTensor, Layout};
use burn_core::tensor::{DType, Element as BurnElement, FloatDType, Shape, TensorData, bf16, f16};

use crate::{
    error::Operand,
    layout::{self, Space, Strides, X_INDEX, Y_INDEX},
    path::{Pass, Path},
    plan::{FloatOptions, Plan, Wanted},
};

mod aligned;
mod compensated;
mod element;
mod gemm;
mod loops;
mod matrices;
mod memory;
mod norms;
mod ops;
mod pool;
mod reduction;
mod simd;
mod streaming;
mod strided;
#[cfg(test)]
mod tests;
mod threads;

pub(crate) use pool::release as release_memory;
pub(crate) use threads::for_each as for_each_task;

use element::Element;
use matrices::Matrices;
use memory::{Differentiated, Fresh, base_ptr};
use reduction::{BackwardTensors, ForwardTensors, Rows, SavedRow};
use threads::SharedPtr;

/// What a forward pass gives.
struct Forward {
    pub out: FlexTensor,
    pub saved: Option<Saved>,
}

/// Norms, and what else they come with, saved for the backward pass.
#[derive(Clone)]
struct Saved {
    pub norms: FlexTensor,
    /// Who alone can read them.
    pub by: Path,
}

impl Saved {
    /// The first element, where these are so many of this dtype, contiguous, by the path that is to read them.
    fn read_by<T: Stored>(&self, by: Path, count: usize) -> Option<*const T> {
        let Saved { norms, by: saved_by } = self;
        let fits = norms.dtype() == T::dtype() && norms.is_contiguous() && norms.layout().num_elements() == count;
        (*saved_by == by && fits).then(|| base_ptr::<T>(norms))
    }
}

/// The gradients of the inputs, where they were asked for.
struct Grads {
    pub lhs: Option<FlexTensor>,
    pub rhs: Option<FlexTensor>,
}

/// Calls a function of the dtypes of inputs and output, if there are kernels from the one to the other. The only list of them.
macro_rules! for_dtypes {
    ($dtypes:expr, $function:ident($($argument:expr),*), $otherwise:expr) => {
        match $dtypes {
            (FloatDType::F64, FloatDType::F64) => $function::<f64, f64>($($argument),*),
            (FloatDType::F32, FloatDType::F32) => $function::<f32, f32>($($argument),*),
            (FloatDType::F16, FloatDType::F16) => $function::<f16, f16>($($argument),*),
            (FloatDType::F16, FloatDType::F32) => $function::<f16, f32>($($argument),*),
            (FloatDType::BF16, FloatDType::BF16) => $function::<bf16, bf16>($($argument),*),
            (FloatDType::BF16, FloatDType::F32) => $function::<bf16, f32>($($argument),*),
            _ => $otherwise,
        }
    };
}

/// Whether there is a kernel from inputs of a dtype to an output of another.
fn has_kernel(input: FloatDType, output: FloatDType) -> bool {
    fn dtypes<T: Stored, O: Stored>() -> Option<[DType; 2]> {
        Some([T::dtype(), O::dtype()])
    }
    for_dtypes!((input, output), dtypes(), None).is_some()
}

/// The inputs have the shapes that were planned: on that it rests that the indices of a [`Space`] are within them.
fn assert_planned([lhs, rhs]: [&FlexTensor; 2], plan: &Plan) {
    let (lhs, rhs) = (lhs.layout().shape(), rhs.layout().shape());
    assert!(
        *lhs == plan.lhs.shape && *rhs == plan.rhs.shape,
        "inputs {lhs:?} and {rhs:?} of a product that was planned as {plan:?}"
    );
}

/// The product, and, if `save` is set, what [`float_dot_grads`] can use, where that is worth its memory.
fn float_dot(lhs: &FlexTensor, rhs: &FlexTensor, plan: &Plan, options: FloatOptions, save: bool) -> Option<Forward> {
    if plan.is_trivial() {
        return None;
    }
    assert_planned([lhs, rhs], plan);
    let output = options.output.unwrap_or(lhs.dtype().into());
    for_dtypes!((lhs.dtype().into(), output), forward(lhs, rhs, plan, options.normalize, save), None)
}

/// The gradients of the product that are wanted, or the inputs, handed back. An input that nobody else holds may be overwritten by its gradient.
#[expect(clippy::result_large_err, reason = "not an error: the inputs, handed back, moved once in a backward pass")]
fn float_dot_grads(
    inputs: [FlexTensor; 2],
    grad: &FlexTensor,
    saved: Option<&Saved>,
    plan: &Plan,
    options: FloatOptions,
    wanted: Wanted,
) -> Result<Grads, [FlexTensor; 2]> {
    if plan.is_trivial() {
        return Err(inputs);
    }
    assert_planned(inputs.each_ref(), plan);
    assert_eq!(grad.layout().shape(), &plan.output, "the gradient of the output that was planned");
    let dtypes = (inputs[0].dtype().into(), grad.dtype().into());
    for_dtypes!(dtypes, backward(inputs, grad, saved, plan, options.normalize, wanted), Err(inputs))
}

/// A contiguous tensor in memory of the pool, where that has huge pages: a catalogue of 512 MB was read in 20.4 ms, in 22.6 before.
fn in_huge_pages(x: FlexTensor) -> FlexTensor {
    let dtype = x.dtype();
    if !x.is_contiguous() || !pool::has_huge_pages(x.layout().num_elements().saturating_mul(dtype.size())) {
        return x;
    }
    for_dtypes!((dtype.into(), dtype.into()), copied(&x), x)
}

/// For [`in_huge_pages`]; `x` is contiguous and not empty.
fn copied<T: Stored, O: Stored>(x: &FlexTensor) -> FlexTensor {
    let mut to = Fresh::<T>::new(Layout::contiguous(x.layout().shape().clone()));
    let (from, at) = (SharedPtr::new(base_ptr::<T>(x)), SharedPtr::new(to.as_mut_ptr()));
    threads::for_each_range(x.layout().num_elements(), 1, |range| {
        // SAFETY: both tensors have these elements, contiguous, and each task copies its own.
        unsafe { core::ptr::copy_nonoverlapping(from.get().add(range.start), at.get().add(range.start), range.len()) }
    });
    to.into_tensor()
}

/// An [`Element`] that flex stores.
trait Stored: Element<Compute: BurnElement + bytemuck::Pod> + BurnElement + bytemuck::Pod {}
impl<T: Element<Compute: BurnElement + bytemuck::Pod> + BurnElement + bytemuck::Pod> Stored for T {}

/// What is saved for a backward pass takes at most this part of the inputs: beside short vectors it would be too much.
const SAVED_PART: usize = 8;

fn forward<T: Stored, O: Stored + Element<Compute = T::Compute>>(
    lhs: &FlexTensor,
    rhs: &FlexTensor,
    plan: &Plan,
    epsilon: Option<f64>,
    save: bool,
) -> Option<Forward> {
    let (inputs, save) = ([lhs, rhs], save && epsilon.is_some());
    match path(inputs, plan, Pass::Forward) {
        Path::Reduction { vector } => rows_forward::<T, O>(inputs, plan, epsilon, save, vector),
        Path::Gemm => matrices_forward::<T, O>(inputs, plan, epsilon, save),
    }
}

fn path([lhs, rhs]: [&FlexTensor; 2], plan: &Plan, pass: Pass) -> Path {
    Path::choose(plan, Some([lhs.layout().strides(), rhs.layout().strides()]), pass == Pass::Forward)
}

/// The axes of a product, with the strides of its inputs and its output.
fn forward_space([lhs, rhs]: [&FlexTensor; 2], out: &[isize], plan: &Plan) -> Space {
    let (lhs, rhs) = (lhs.layout().strides(), rhs.layout().strides());
    Space::new(plan, Strides { lhs, rhs, out, ..Strides::default() })
}

/// Whether so many elements of this size are few beside the inputs.
fn is_worth_saving(inputs: [&FlexTensor; 2], count: usize, size: usize) -> bool {
    let [lhs, rhs] = inputs.map(|input| input.layout().num_elements().saturating_mul(input.dtype().size()));
    count.saturating_mul(size) <= lhs.saturating_add(rhs) / SAVED_PART
}

/// None where the composition must do it.
fn rows_forward<T: Stored, O: Stored + Element<Compute = T::Compute>>(
    inputs: [&FlexTensor; 2],
    plan: &Plan,
    epsilon: Option<f64>,
    save: bool,
    vector: Operand,
) -> Option<Forward> {
    let mut out = Fresh::<O>::new(Layout::contiguous(plan.output.clone()));
    let mut space = forward_space(inputs, out.strides(), plan);
    let [mut x, mut y] = inputs.map(base_ptr::<T>);
    if vector == Operand::Rhs {
        space.swap();
        (x, y) = (y, x);
    }
    let shape = saved_rows(plan);
    let read_again = path(inputs, plan, Pass::Backward) != Path::Gemm;
    let save = save && read_again && is_worth_saving(inputs, shape.iter().product(), size_of::<f64>());
    let mut saved = save.then(|| Fresh::<f64>::new(Layout::contiguous(Shape::from(shape))));
    let to_save = saved.as_mut().map(|saved| saved.as_mut_ptr().cast());
    // SAFETY: every index of `space` is within the tensors, as was checked where they became pointers, and nothing is empty. Nobody
    // else has the output and what is saved, which has a row for each of the output's elements.
    let complete = unsafe {
        let pass = ForwardTensors { out: out.as_mut_ptr(), saved: to_save };
        reduction::forward(Rows { x, y, pass }, &space, epsilon)
    };
    let saved = saved.map(|saved| Saved { norms: saved.into_tensor(), by: Path::Reduction { vector } });
    complete.then(|| Forward { out: out.into_tensor(), saved })
}

/// None where the composition must do it.
fn matrices_forward<T: Stored, O: Stored + Element<Compute = T::Compute>>(
    inputs: [&FlexTensor; 2],
    plan: &Plan,
    epsilon: Option<f64>,
    save: bool,
) -> Option<Forward> {
    let mut out = Fresh::<O>::product(Layout::contiguous(plan.output.clone()));
    let space = forward_space(inputs, out.strides(), plan);
    let [x, y] = inputs.map(base_ptr::<T>);
    let counts = [space.vectors(X_INDEX), space.vectors(Y_INDEX)];
    let scales = match epsilon {
        // SAFETY: every index of `space` is within the tensors, as was checked where they became pointers, and nothing is empty.
        Some(epsilon) => Some(unsafe { norms::scales_of_both(x, y, &space, counts, epsilon) }?),
        None => None,
    };
    let both = scales.as_ref().map(|scales| scales.split_at(counts[0]).into());
    // SAFETY: as above, also for the scales: there is one for each vector. Nobody else has the output.
    unsafe { matrices::forward(Matrices { x, y, out: out.as_mut_ptr() }, space, both) };
    let saved = scales.filter(|scales| save && is_worth_saving(inputs, scales.len(), size_of::<T::Compute>()));
    let saved = saved.map(|scales| {
        let shape = [scales.len()];
        Saved { norms: FlexTensor::from_data(TensorData::new(scales, shape)), by: Path::Gemm }
    });
    Some(Forward { out: out.into_tensor(), saved })
}

/// The shape of what is saved of rows: a [`SavedRow`] for each element of the output.
fn saved_rows(plan: &Plan) -> [usize; 2] {
    [plan.batch * plan.m * plan.n, size_of::<SavedRow>() / size_of::<f64>()]
}

#[expect(clippy::result_large_err, reason = "not an error: the inputs, handed back, moved once in a backward pass")]
fn backward<T: Stored, O: Stored + Element<Compute = T::Compute>>(
    [lhs, rhs]: [FlexTensor; 2],
    grad: &FlexTensor,
    saved: Option<&Saved>,
    plan: &Plan,
    epsilon: Option<f64>,
    wanted: Wanted,
) -> Result<Grads, [FlexTensor; 2]> {
    let path = path([&lhs, &rhs], plan, Pass::Backward);
    let (over_lhs, over_rhs) = match path {
        // Rows are overwritten by their gradients one by one, unless the kernel might stop half-way.
        Path::Reduction { .. } => [epsilon.is_none() || reduction::is_infallible::<T>(); 2].into(),
        // The gradient of rhs, which reads lhs, is made first; that of lhs, of a plain product, reads nothing but rhs.
        Path::Gemm => (epsilon.is_none(), false),
    };
    let mut lhs = Differentiated::<T>::new(lhs, wanted.lhs, over_lhs);
    let mut rhs = Differentiated::<T>::new(rhs, wanted.rhs, over_rhs);
    let ((lhs_strides, grad_lhs), (rhs_strides, grad_rhs)) = (lhs.strides(), rhs.strides());
    let out = grad.layout().strides();
    let space = Space::new(plan, Strides { lhs: lhs_strides, rhs: rhs_strides, grad_lhs, grad_rhs, out });
    let complete = match path {
        Path::Reduction { vector } => rows_backward::<T, O>(&mut lhs, &mut rhs, grad, saved, plan, space, epsilon, vector),
        Path::Gemm => matrices_backward::<T, O>(&mut lhs, &mut rhs, grad, saved, space, epsilon),
    };
    match complete {
        true => Ok(Grads { lhs: lhs.into_gradient(), rhs: rhs.into_gradient() }),
        false => Err([lhs.into_input(), rhs.into_input()]),
    }
}

/// False where the composition must do it.
#[expect(clippy::too_many_arguments, reason = "one place calls it")]
fn rows_backward<T: Stored, O: Stored + Element<Compute = T::Compute>>(
    lhs: &mut Differentiated<T>,
    rhs: &mut Differentiated<T>,
    grad: &FlexTensor,
    saved: Option<&Saved>,
    plan: &Plan,
    mut space: Space,
    epsilon: Option<f64>,
    vector: Operand,
) -> bool {
    let in_place = lhs.is_in_place() || rhs.is_in_place();
    let (x, y) = if vector == Operand::Lhs { (lhs, rhs) } else { (rhs, lhs) };
    if vector == Operand::Rhs {
        space.swap();
    }
    let saved = saved.and_then(|saved| saved.read_by::<f64>(Path::Reduction { vector }, saved_rows(plan).iter().product()));
    let saved = saved.map(|saved| saved.cast());
    let pass = BackwardTensors { grad: base_ptr::<O>(grad), saved, dx: x.gradient(), dy: y.gradient() };
    let rows = Rows { x: x.input(), y: y.input(), pass };
    // SAFETY: every index of `space` is within the tensors, as was checked where they became pointers, and nothing is empty; what was
    // saved has a row for each of the output's elements. Nobody else has the gradients, which are the inputs' own where `in_place` says so.
    unsafe { reduction::backward(rows, &space, epsilon, in_place) }
}

/// False where the composition must do it.
fn matrices_backward<T: Stored, O: Stored + Element<Compute = T::Compute>>(
    lhs: &mut Differentiated<T>,
    rhs: &mut Differentiated<T>,
    grad: &FlexTensor,
    saved: Option<&Saved>,
    space: Space,
    epsilon: Option<f64>,
) -> bool {
    let (x, y) = (lhs.input(), rhs.input());
    let counts = [space.vectors(X_INDEX), space.vectors(Y_INDEX)];
    let saved = saved.and_then(|saved| saved.read_by::<T::Compute>(Path::Gemm, counts[0] + counts[1]));
    let made;
    let scales = match (epsilon, saved) {
        (None, _) => None,
        // SAFETY: there are so many, contiguous, and nobody writes to what was saved.
        (Some(_), Some(saved)) => Some(unsafe { core::slice::from_raw_parts(saved, counts[0] + counts[1]) }),
        (Some(epsilon), None) => {
            // SAFETY: every index of `space` is within the inputs, as was checked where they became pointers, and nothing is empty.
            let Some(scales) = (unsafe { norms::scales_of_both(x, y, &space, counts, epsilon) }) else { return false };
            made = scales;
            Some(&made[..])
        }
    };
    let out = base_ptr::<O>(grad);
    let scales = scales.map(|scales| scales.split_at(counts[0]).into());
    // SAFETY: as above, also for the gradients and the scales, of which there is one for each vector. Nobody else has the gradients; that
    // of lhs is in place only where there are no scales.
    unsafe { matrices::backward(Matrices { x, y, out }, (lhs.gradient(), rhs.gradient()), space, scales) };
    true
}
