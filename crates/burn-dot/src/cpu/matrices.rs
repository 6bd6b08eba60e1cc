//! Products where both inputs have several vectors for each batch index, and their gradients, as matrix products.
//!
//! Norms are applied to the output and to gradients, never to a copy of a whole input.

use super::{
    gemm::{Epilogue, Input, Output, Product},
    kernel::Element,
    space::{DX, OUT, Space, X, Y},
};

/// The tensors of a product, each by its first element.
#[derive(Clone, Copy)]
pub(super) struct Matrices<T, O> {
    pub x: *const T,
    pub y: *const T,
    /// The output, or its gradient.
    pub out: *mut O,
}

/// The product; normalized, where the norms of `x` and `y` are given.
///
/// # Safety
///
/// Every index of `space` lies within the tensors and the norms, nothing in it is empty, and nothing else reads or writes `out`.
pub(super) unsafe fn forward<T, O>(tensors: Matrices<T, O>, space: Space, norms: Option<[&[T::Real]; 2]>)
where
    T: Element,
    O: Element<Real = T::Real>,
{
    let product = Product {
        batch: &space.batch,
        rows: &space.i,
        columns: &space.j,
        sum: &space.k,
        a: Input::new(tensors.x, X),
        b: Input::new(tensors.y, Y),
        b_factors: None,
        c: Output::new(tensors.out, OUT),
        epilogue: norms.map_or(Epilogue::None, |[rows, columns]| Epilogue::Scale { rows, columns }),
    };
    // SAFETY: the caller's promise.
    unsafe { product.run() };
}

/// The gradients that are wanted: of `y`, written to `dy`, then of `x`, to `dx`.
///
/// # Safety
///
/// As [`forward`], for `dx` and `dy`. `dx` may be `x` itself where there are no norms: its gradient does not need it.
pub(super) unsafe fn backward<T, O>(
    tensors: Matrices<T, O>,
    (dx, dy): (Option<*mut T>, Option<*mut T>),
    space: Space,
    norms: Option<[&[T::Real]; 2]>,
) where
    T: Element,
    O: Element<Real = T::Real>,
{
    if let Some(dy) = dy {
        let tensors = Matrices { x: tensors.y, y: tensors.x, ..tensors };
        // SAFETY: the caller's promise.
        unsafe { gradient(tensors, dy, &space.clone().swapped(), norms.map(|[x, y]| [y, x])) };
    }
    if let Some(dx) = dx {
        // SAFETY: as above.
        unsafe { gradient(tensors, dx, &space, norms) };
    }
}

/// The gradient of `x`.
unsafe fn gradient<T, O>(tensors: Matrices<T, O>, dx: *mut T, space: &Space, norms: Option<[&[T::Real]; 2]>)
where
    T: Element,
    O: Element<Real = T::Real>,
{
    // Where x is repeated along the batch, its gradient collects the sum.
    let (own, repeated) = space.batch.split_by(DX);
    let sum = repeated.followed_by(&space.j);
    let product = Product {
        batch: &own,
        rows: &space.i,
        columns: &space.k,
        sum: &sum,
        a: Input::new(tensors.out.cast_const(), OUT),
        b: Input::new(tensors.y, Y),
        b_factors: norms.map(|[_, y]| y),
        c: Output::new(dx, DX),
        epilogue: norms.map_or(Epilogue::None, |[norms, _]| Epilogue::Project { x: Input::new(tensors.x, X), norms }),
    };
    // SAFETY: the caller's promise: the rows of x lie where those of its gradient do.
    unsafe { product.run() };
}
