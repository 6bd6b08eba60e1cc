//! Products where both inputs have several vectors for each batch index, and their gradients, as matrix products.
//!
//! Norms are applied to the output and to gradients, never to a copy of a whole input: as the factors that `norms` calls scales.

use alloc::{vec, vec::Vec};

use super::{
    compensated::Compensated,
    element::Element,
    gemm::{Epilogue, Input, Output, Product},
    layout::{DX, OUT, OUT_INDEX, Space, X, Y, sum},
    threads::{self, SharedPtr},
};

/// The tensors of a product, each by its first element.
#[derive(Clone, Copy)]
pub(super) struct Matrices<T, P> {
    pub x: *const T,
    pub y: *const T,
    /// The output, a `*mut O`, or its gradient, a `*const O`.
    pub out: P,
}

/// The product; normalized, where the scales of `x` and `y` are given.
///
/// # Safety
///
/// Every index of `space` is within the tensors and the scales, nothing in it is empty, and nothing else reads or writes `out`,
/// which is initialized.
pub(super) unsafe fn forward<T, O>(tensors: Matrices<T, *mut O>, space: Space, scales: Option<[&[T::Compute]; 2]>)
where
    T: Element,
    O: Element<Compute = T::Compute>,
{
    // SAFETY: every index of the space is within `x`, `y`, the scales and, as `OUT`, the output, which is initialized and ours alone.
    unsafe { product(tensors.x, tensors.y, Output::new(tensors.out, OUT), &space, scales) };
}

/// [`forward`], to `c`.
///
/// # Safety
///
/// As for [`forward`], of `x`, `y` and `c`.
unsafe fn product<T: Element>(
    x: *const T,
    y: *const T,
    c: Output<T::Compute>,
    space: &Space,
    scales: Option<[&[T::Compute]; 2]>,
) {
    let product = Product {
        batch: &space.batch,
        rows: &space.i,
        columns: &space.j,
        sum: &space.k,
        a: Input::new(x, X),
        b: Input::new(y, Y),
        b_factors: None,
        c,
        epilogue: scales.map_or(Epilogue::None, |[rows, columns]| Epilogue::Scale { rows, columns }),
    };
    // SAFETY: the axes are those of the space.
    unsafe { product.run() };
}

/// The gradients that are wanted: of `y`, written to `dy`, then of `x`, to `dx`.
///
/// # Safety
///
/// As for [`forward`], of `dx` and `dy`. `dx` may be `x` itself where there are no scales: its gradient does not need it.
pub(super) unsafe fn backward<T, O>(
    tensors: Matrices<T, *const O>,
    (dx, dy): (Option<*mut T>, Option<*mut T>),
    space: Space,
    scales: Option<[&[T::Compute]; 2]>,
) where
    T: Element,
    O: Element<Compute = T::Compute>,
{
    // SAFETY: the space is within the tensors and the scales.
    let cosines = scales.filter(|_| recomputes_cosines(&space)).map(|scales| unsafe { cosines(tensors, &space, scales) });
    let cosines = cosines.as_deref();
    if let Some(dy) = dy {
        let tensors = Matrices { x: tensors.y, y: tensors.x, ..tensors };
        let mut space = space.clone();
        space.swap();
        // SAFETY: the space is within `dy`, too, and both sides are exchanged alike.
        unsafe { gradient(tensors, dy, &space, scales.map(|[x, y]| [y, x]), cosines) };
    }
    if let Some(dx) = dx {
        // SAFETY: the space is within `dx`, too.
        unsafe { gradient(tensors, dx, &space, scales, cosines) };
    }
}

/// Vectors longer than this do not stay in a cache until their gradient is complete.
const LONG: usize = 1 << 15;
/// For so few vectors the product costs less than one more pass over the gradients.
const FEW: usize = 32;

/// Whether the projections come from the cosines, multiplied once more: `x·p / ‖x‖ = Σⱼ g[j] cos(x, yⱼ)`. Else each row of the gradient is
/// multiplied by its vector.
fn recomputes_cosines(space: &Space) -> bool {
    let (m, n) = (space.i.len(), space.j.len());
    space.k.len() > LONG || m * n <= FEW * (m + n)
}

/// The product, normalized, in the compute dtype and in the order of [`OUT_INDEX`].
///
/// # Safety
///
/// Every index of `space` is within the inputs and the scales, and nothing in it is empty.
unsafe fn cosines<T, O>(tensors: Matrices<T, *const O>, space: &Space, scales: [&[T::Compute]; 2]) -> Vec<T::Compute>
where
    T: Element,
    O: Element<Compute = T::Compute>,
{
    let mut cosines = vec![T::Compute::default(); space.batch.len() * space.i.len() * space.j.len()];
    // SAFETY: the space is within the inputs, the caller says, and there is a cosine for each element of the output.
    unsafe { product(tensors.x, tensors.y, Output::new(cosines.as_mut_ptr(), OUT_INDEX), space, Some(scales)) };
    cosines
}

/// `Σⱼ g[j] cos(x, yⱼ)` of each vector `x`.
///
/// # Safety
///
/// Every index of `space` is within `grad`, the gradient of the output, and nobody writes to it.
unsafe fn dots<O: Element>(grad: *const O, cosines: &[O::Compute], space: &Space) -> Vec<f64> {
    let (own, broadcast) = space.batch.split_by(DX);
    let (vectors, others) = (own.followed_by(&space.i), broadcast.followed_by(&space.j));
    let (grad, cost) = (SharedPtr::new(grad), vectors.len().saturating_mul(others.len()));
    // In the order of `X_INDEX`, which numbers the vectors as these axes do.
    threads::map(vectors.len(), cost, |vector| {
        let (vector, mut dot) = (vectors.offset(vector), Compensated::default());
        for other in others.iter(0..others.len()) {
            let at = sum(vector, other);
            // SAFETY: the offset is one of the space's.
            let g = unsafe { *grad.get().offset(at[OUT]) };
            dot.add(g.to_f64() * cosines[at[OUT_INDEX] as usize].to_f64());
        }
        dot.total()
    })
}

/// The gradient of `x`, written to `dx`.
///
/// # Safety
///
/// As for [`backward`], of `dx` alone.
unsafe fn gradient<T, O>(
    tensors: Matrices<T, *const O>,
    dx: *mut T,
    space: &Space,
    scales: Option<[&[T::Compute]; 2]>,
    cosines: Option<&[T::Compute]>,
) where
    T: Element,
    O: Element<Compute = T::Compute>,
{
    // SAFETY: the space is within the gradient of the output.
    let dots = cosines.map(|cosines| unsafe { dots(tensors.out, cosines, space) });
    let dots = dots.as_deref();
    // Where x is broadcast along the batch, its gradient is the sum.
    let (own, broadcast) = space.batch.split_by(DX);
    let sum = broadcast.followed_by(&space.j);
    let product = Product {
        batch: &own,
        rows: &space.i,
        columns: &space.k,
        sum: &sum,
        a: Input::new(tensors.out, OUT),
        b: Input::new(tensors.y, Y),
        b_factors: scales.map(|[_, y]| y),
        c: Output::new(dx, DX),
        epilogue: scales.map_or(Epilogue::None, |[scales, _]| Epilogue::Project { x: Input::new(tensors.x, X), scales, dots }),
    };
    // SAFETY: the axes are those of the space, and the rows of x are where those of its gradient are.
    unsafe { product.run() };
}
