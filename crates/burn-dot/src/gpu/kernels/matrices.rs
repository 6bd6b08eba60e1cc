//! What stands around Burn's matmul where inputs are normalized: norms before, cosines behind; in the backward pass unit vectors before,
//! projections behind.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::{
    RowOptions, add_units, max_units, norm_of, offset, offsets, own_row,
    rows::{Summed, Terms, pass},
    safe_scale, split, store, within,
};

/// What is saved of a vector: the inverse and the scale of its norm, and 0 where the norm is epsilon, else 1.
pub const SAVED: usize = 3;

/// One pass of a unit over its part of a vector of x or of y: the sum of squares, and the largest element.
#[cube]
#[allow(clippy::too_many_arguments)]
fn square<E: Float, N: Size, A: Float>(
    x: &Tensor<Vector<E, N>>,
    y: &Tensor<Vector<E, N>>,
    row: usize,
    x_count: usize,
    scale: A,
    terms: Terms,
    #[comptime] x_rows: RowOptions,
    #[comptime] y_rows: RowOptions,
    #[comptime] scaled: bool,
) -> Vector<A, Const<2>> {
    let mut found = Vector::<A, Const<2>>::new(A::new(0.0));
    if row < x_count {
        let sums = pass::<E, N, A>(x, x, row, scale, scale, terms, x_rows, Summed::Square, scaled);
        found.insert(0usize, sums.xx);
        found.insert(1usize, sums.largest_x);
    } else {
        let sums = pass::<E, N, A>(y, y, row - x_count, scale, scale, terms, y_rows, Summed::Square, scaled);
        found.insert(0usize, sums.xx);
        found.insert(1usize, sums.largest_x);
    }
    found
}

/// The norms of the vectors of both inputs, those of x first.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub fn norms<E: Float, N: Size, A: Float>(
    x: &Tensor<Vector<E, N>>,
    y: &Tensor<Vector<E, N>>,
    norms: &mut Tensor<A>,
    epsilon: InputScalar,
    x_count: usize,
    y_count: usize,
    vectors: usize,
    block: usize,
    #[comptime] x_rows: RowOptions,
    #[comptime] y_rows: RowOptions,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let own = own_row();
    let count = x_count + y_count;
    let row = min(own, count - 1);
    let terms = Terms { vectors, block };
    let (zero, one) = (A::new(0.0), A::new(1.0));
    let first = square::<E, N, A>(x, y, row, x_count, one, terms, x_rows, y_rows, false);
    let mut partial = first.extract(0usize);
    let epsilon = epsilon.get::<A>();
    let largest = max_units::<A, Const<1>>(Vector::new(first.extract(1usize)), x_rows).extract(0usize);
    // The product of the inputs is made by a matmul, without scales: its safe range is wider than that of sums of squares.
    let reach = max(largest, epsilon);
    let least = A::new(comptime!(2f32.powi(if x_rows.wide { -100 } else { -20 })));
    let unsafe_product = (largest > zero && largest < least) || reach >= A::new(comptime!(2f32.powi(40)));
    let scale = select(unsafe_product, safe_scale::<A>(reach, x_rows.wide), one);
    if scale != one {
        partial = square::<E, N, A>(x, y, row, x_count, scale, terms, x_rows, y_rows, true).extract(0usize);
    }
    let square = add_units::<A, Const<1>>(Vector::new(partial), x_rows).extract(0usize);
    let norm = norm_of::<A>(square, largest, scale, epsilon);
    if own < count && UNIT_POS_X == 0 {
        let at = row * SAVED;
        norms[at] = norm.inverse;
        norms[at + 1] = norm.scale;
        norms[at + 2] = select(norm.below_epsilon, zero, one);
    }
}

/// What `cosines` is compiled for: the axes of the output, and the contracted axes behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CosineAxes {
    pub out_axes: usize,
    pub term_axes: usize,
}

/// Cosines from the product of the unscaled inputs: divided by both norms, clamped, converted. A unit has `N` neighbours along the last
/// axis of the output. An element whose vectors are not in the range where that product is safe is multiplied again.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub fn cosines<E: Float, N: Size, O: Float, A: Float>(
    product: &Tensor<Vector<A, N>>,
    x: &Tensor<E>,
    y: &Tensor<E>,
    x_norms: &Tensor<A>,
    y_norms: &Tensor<A>,
    out: &mut Tensor<Vector<O, N>>,
    vectors: usize,
    x_count: usize,
    terms: usize,
    block: usize,
    #[comptime] axes: CosineAxes,
    #[define(E, O, A)] _dtypes: [ElemType; 3],
) {
    let at = ABSOLUTE_POS;
    if at >= vectors {
        terminate!();
    }
    let first = at * N::value();
    let (x_norm, y_norm) = offsets(x_norms, y_norms, first, axes.out_axes);
    let dots = product[at];
    let mut cosines = Vector::<A, N>::new(A::new(0.0));
    #[unroll]
    for place in 0..N::value() {
        let x_norm = x_norm + along_last(x_norms, place, axes.out_axes);
        let y_norm = y_norm + along_last(y_norms, place, axes.out_axes) + x_count * SAVED;
        let x_scale = x_norms[x_norm + 1];
        let y_scale = y_norms[y_norm + 1];
        let mut dot = dots.extract(place);
        if x_scale != A::new(1.0) || y_scale != A::new(1.0) {
            let (x_row, y_row) = offsets(x, y, first, axes.out_axes);
            let x_row = x_row + along_last(x, place, axes.out_axes);
            let y_row = y_row + along_last(y, place, axes.out_axes);
            dot = scaled_dot::<E, A>(x, y, x_row, y_row, x_scale, y_scale, terms, block, axes);
        }
        cosines.insert(place, within::<A>(dot * x_norms[x_norm] * y_norms[y_norm], A::new(1.0)));
    }
    out[at] = Vector::cast_from(cosines);
}

/// The offset of so many strides along the last of a view's output axes, if it has any.
#[cube]
fn along_last<T: CubePrimitive>(tensor: &Tensor<T>, strides: usize, #[comptime] out_axes: usize) -> usize {
    if comptime!(out_axes == 0) { comptime!(0usize).runtime() } else { strides * tensor.stride(comptime!(out_axes - 1)) }
}

/// The product of two vectors, each scaled first.
#[cube]
#[allow(clippy::too_many_arguments)]
fn scaled_dot<E: Float, A: Float>(
    x: &Tensor<E>,
    y: &Tensor<E>,
    x_row: usize,
    y_row: usize,
    x_scale: A,
    y_scale: A,
    terms: usize,
    block: usize,
    #[comptime] axes: CosineAxes,
) -> A {
    let mut dot = A::new(0.0);
    let mut start = comptime!(0usize).runtime();
    while start < terms {
        let mut part = A::new(0.0);
        for term in start..min(start + block, terms) {
            let x_at = x_row + offset(x, term, axes.out_axes, axes.term_axes);
            let y_at = y_row + offset(y, term, axes.out_axes, axes.term_axes);
            part += A::cast_from(x[x_at]) * x_scale * (A::cast_from(y[y_at]) * y_scale);
        }
        dot += part;
        start += block;
    }
    dot
}

/// Row axes of both inputs' views, and the contracted axes behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sides {
    pub x_axes: usize,
    pub y_axes: usize,
    pub term_axes: usize,
}

/// The vectors of both inputs, or of one, divided by their norms, contiguous.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub fn unit_vectors<E: Float, N: Size, A: Float>(
    x: &Tensor<Vector<E, N>>,
    y: &Tensor<Vector<E, N>>,
    norms: &Tensor<A>,
    unit_x: &mut Tensor<Vector<A, N>>,
    unit_y: &mut Tensor<Vector<A, N>>,
    x_count: usize,
    y_count: usize,
    norms_before: usize,
    vectors: usize,
    #[comptime] sides: Sides,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let (row, term) = split(ABSOLUTE_POS, vectors);
    if row >= x_count + y_count {
        terminate!();
    }
    let element = term * N::value();
    let norm = (norms_before + row) * SAVED;
    let inverse = Vector::<A, N>::new(norms[norm]);
    let scale = Vector::<A, N>::new(norms[norm + 1]);
    if row < x_count {
        let at = offset(x, row, 0usize, sides.x_axes) + offset(x, element, sides.x_axes, sides.term_axes);
        unit_x[ABSOLUTE_POS] = Vector::<A, N>::cast_from(x[at / N::value()]) * scale * inverse;
    } else {
        let row = row - x_count;
        let at = offset(y, row, 0usize, sides.y_axes) + offset(y, element, sides.y_axes, sides.term_axes);
        let to = ABSOLUTE_POS - x_count * vectors;
        unit_y[to] = Vector::<A, N>::cast_from(y[at / N::value()]) * scale * inverse;
    }
}

/// Gradients of both inputs from those of their unit vectors, `p`: `(p − u (u·p)) / ‖x‖`. Inputs without a gradient, or of another launch, have no rows.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub fn project<E: Float, N: Size, A: Float>(
    unit_x: &Tensor<Vector<A, N>>,
    unit_y: &Tensor<Vector<A, N>>,
    product_x: &Tensor<Vector<A, N>>,
    product_y: &Tensor<Vector<A, N>>,
    norms: &Tensor<A>,
    grad_x: &mut Tensor<Vector<E, N>>,
    grad_y: &mut Tensor<Vector<E, N>>,
    limit: InputScalar,
    x_count: usize,
    y_count: usize,
    norms_before: usize,
    vectors: usize,
    block: usize,
    #[comptime] rows: RowOptions,
    #[comptime] sides: Sides,
    #[comptime] saturate: bool,
    #[define(E, A)] _dtypes: [ElemType; 2],
) {
    let own = own_row();
    let count = x_count + y_count;
    let row = min(own, count - 1);
    let terms = Terms { vectors, block };
    let one = A::new(1.0);
    let partial = if row < x_count {
        pass::<A, N, A>(unit_x, product_x, row, one, one, terms, rows, Summed::Product, false).dot
    } else {
        pass::<A, N, A>(unit_y, product_y, row - x_count, one, one, terms, rows, Summed::Product, false).dot
    };
    let along = add_units::<A, Const<1>>(Vector::new(partial), rows).extract(0usize);
    let norm = (norms_before + row) * SAVED;
    let inverse = Vector::<A, N>::new(norms[norm]);
    let scale = Vector::<A, N>::new(norms[norm + 1]);
    let along = Vector::<A, N>::new(along * norms[norm + 2]);
    let limit = limit.get::<A>();
    if own < count {
        for term in range_stepped(UNIT_POS_X as usize, vectors, rows.units) {
            let element = term * N::value();
            if row < x_count {
                let from = row * vectors + term;
                let to = offset(&*grad_x, row, 0usize, sides.x_axes) + offset(&*grad_x, element, sides.x_axes, sides.term_axes);
                let given = (product_x[from] - unit_x[from] * along) * inverse * scale;
                grad_x[to / N::value()] = store::<E, A, N>(given, limit, saturate);
            } else {
                let from = (row - x_count) * vectors + term;
                let to = offset(&*grad_y, row - x_count, 0usize, sides.y_axes)
                    + offset(&*grad_y, element, sides.y_axes, sides.term_axes);
                let given = (product_y[from] - unit_y[from] * along) * inverse * scale;
                grad_y[to / N::value()] = store::<E, A, N>(given, limit, saturate);
            }
        }
    }
}
