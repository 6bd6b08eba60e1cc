//! Row products: `out[r] = Σₖ x[r, k] · y[r, k]`, plain or of normalized vectors, and both gradients.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::{Norm, RowOptions, RowSums, add_units, max_units, norm_of, offset, own_row, safe_scale, split, store, within};

/// What is saved of a normalized row: for lhs, then for rhs, the cosine (0 where the norm is epsilon), and the norm's inverse and scale.
pub const SAVED: usize = 2 * NORM;
const NORM: usize = 3;

/// How a row is passed over: its vectors of `N` elements, in blocks of so many steps.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Terms {
    pub vectors: usize,
    pub block: usize,
}

/// What a pass sums: `x y`, `x x`, or both and `y y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Summed {
    Product,
    Square,
    All,
}

/// One pass of a unit over its part of a row; the largest elements come with the squares. Scaled: elements are multiplied first, and the
/// largest is not looked for.
#[cube]
#[allow(clippy::too_many_arguments)]
pub fn pass<E: Float, N: Size, A: Float>(
    x: &Tensor<Vector<E, N>>,
    y: &Tensor<Vector<E, N>>,
    row: usize,
    scale_x: A,
    scale_y: A,
    terms: Terms,
    #[comptime] rows: RowOptions,
    #[comptime] summed: Summed,
    #[comptime] scaled: bool,
) -> RowSums<A> {
    let units = comptime!(rows.units);
    let x_row = offset(x, row, 0usize, rows.row_axes);
    let y_row = offset(y, row, 0usize, rows.row_axes);
    let mut sums =
        RowSums::<A> { dot: A::new(0.0), xx: A::new(0.0), yy: A::new(0.0), largest_x: A::new(0.0), largest_y: A::new(0.0) };
    let mut largest_x = Vector::<A, N>::new(A::new(0.0));
    let mut largest_y = Vector::<A, N>::new(A::new(0.0));
    let mut start = UNIT_POS_X as usize;
    while start < terms.vectors {
        let end = min(start + terms.block * units, terms.vectors);
        let mut dot = Vector::<A, N>::new(A::new(0.0));
        let mut xx = Vector::<A, N>::new(A::new(0.0));
        let mut yy = Vector::<A, N>::new(A::new(0.0));
        for term in range_stepped(start, end, units) {
            let x_at = (x_row + offset(x, term * N::value(), rows.row_axes, rows.term_axes)) / N::value();
            let mut a = Vector::<A, N>::cast_from(x[x_at]);
            if comptime!(scaled) {
                a *= Vector::new(scale_x);
            }
            if comptime!(summed != Summed::Product) {
                xx += a * a;
                if comptime!(!scaled) {
                    largest_x = max(largest_x, a.abs());
                }
            }
            if comptime!(summed != Summed::Square) {
                let y_at = (y_row + offset(y, term * N::value(), rows.row_axes, rows.term_axes)) / N::value();
                let mut b = Vector::<A, N>::cast_from(y[y_at]);
                if comptime!(scaled) {
                    b *= Vector::new(scale_y);
                }
                dot += a * b;
                if comptime!(summed == Summed::All) {
                    yy += b * b;
                    if comptime!(!scaled) {
                        largest_y = max(largest_y, b.abs());
                    }
                }
            }
        }
        sums.dot += dot.vector_sum();
        sums.xx += xx.vector_sum();
        sums.yy += yy.vector_sum();
        start += terms.block * units;
    }
    if comptime!(summed != Summed::Product && !scaled) {
        #[unroll]
        for place in 0..N::value() {
            sums.largest_x = max(sums.largest_x, largest_x.extract(place));
            sums.largest_y = max(sums.largest_y, largest_y.extract(place));
        }
    }
    sums
}

/// The products of rows; normalized, with what backward needs where `save`.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub fn forward<E: Float, N: Size, O: Float, A: Float>(
    x: &Tensor<Vector<E, N>>,
    y: &Tensor<Vector<E, N>>,
    out: &mut Tensor<O>,
    saved: &mut Tensor<A>,
    epsilon: InputScalar,
    row_count: usize,
    vectors: usize,
    block: usize,
    #[comptime] rows: RowOptions,
    #[comptime] normalize: bool,
    #[comptime] save: bool,
    #[define(E, O, A)] _dtypes: [ElemType; 3],
) {
    let own = own_row();
    let row = min(own, row_count - 1);
    let writes = own < row_count && UNIT_POS_X == 0;
    let terms = Terms { vectors, block };
    let one = A::new(1.0);
    let summed = comptime!(if normalize { Summed::All } else { Summed::Product });
    let first = pass::<E, N, A>(x, y, row, one, one, terms, rows, summed, false);
    if comptime!(normalize) {
        let mut largest = Vector::<A, Const<2>>::empty();
        largest.insert(0usize, first.largest_x);
        largest.insert(1usize, first.largest_y);
        let largest = max_units::<A, Const<2>>(largest, rows);
        let (largest_x, largest_y) = (largest.extract(0usize), largest.extract(1usize));
        let epsilon = epsilon.get::<A>();
        let scale_x = safe_scale::<A>(max(largest_x, epsilon), rows.wide);
        let scale_y = safe_scale::<A>(max(largest_y, epsilon), rows.wide);
        let mut sums = first.packed();
        if scale_x != one || scale_y != one {
            sums = pass::<E, N, A>(x, y, row, scale_x, scale_y, terms, rows, Summed::All, true).packed();
        }
        let total = add_units::<A, Const<4>>(sums, rows);
        let x_norm = norm_of::<A>(total.extract(1usize), largest_x, scale_x, epsilon);
        let y_norm = norm_of::<A>(total.extract(2usize), largest_y, scale_y, epsilon);
        let cosine = total.extract(0usize) * x_norm.inverse * y_norm.inverse;
        if writes {
            out[row] = O::cast_from(within::<A>(cosine, one));
            if comptime!(save) {
                save_norm::<A>(saved, row * SAVED, cosine, &x_norm);
                save_norm::<A>(saved, row * SAVED + NORM, cosine, &y_norm);
            }
        }
    } else {
        let total = add_units::<A, Const<1>>(Vector::new(first.dot), rows);
        if writes {
            out[row] = O::cast_from(total.extract(0usize));
        }
    }
}

#[cube]
fn save_norm<A: Float>(saved: &mut Tensor<A>, at: usize, cosine: A, norm: &Norm<A>) {
    saved[at] = select(norm.below_epsilon, A::new(0.0), cosine);
    saved[at + 1] = norm.inverse;
    saved[at + 2] = norm.scale;
}

/// The most elements of a row that a unit has in [`backward`]: with 32 of them it takes 183 registers on CUDA.
pub const MOST_ELEMENTS: usize = 16;

/// What the kernel of both gradients is compiled for. Views have own axes (those of x's vectors), sum axes (x is the same along them),
/// and contracted axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackwardOptions {
    pub own_axes: usize,
    pub sum_axes: usize,
    pub term_axes: usize,
    /// Parts of a row that a unit has, of `N` elements each.
    pub per_unit: usize,
    pub normalize: bool,
    /// Whether x is lhs, whose norm is saved before that of rhs.
    pub x_is_lhs: bool,
    pub grad_x: bool,
    pub grad_y: bool,
    /// Whether they stay in the finite range of their dtype. Not while they are parts of a sum.
    pub saturate_x: bool,
    pub saturate_y: bool,
}

/// What [`save_norm`] saved of a vector: `1 / ‖x‖ = inverse · scale`, and the cosine, or 0 where the norm is epsilon.
#[derive(CubeType, Clone, Copy)]
struct SavedNorm<A: Float> {
    cosine: A,
    inverse: A,
    scale: A,
}

#[cube]
impl<A: Float> SavedNorm<A> {
    fn read(saved: &Tensor<A>, at: usize, #[comptime] normalize: bool) -> SavedNorm<A> {
        if comptime!(normalize) {
            SavedNorm::<A> { cosine: saved[at], inverse: saved[at + 1], scale: saved[at + 2] }
        } else {
            SavedNorm::<A> { cosine: A::new(0.0), inverse: A::new(1.0), scale: A::new(1.0) }
        }
    }

    /// A vector divided by its norm: scaled first, for small elements not to be lost.
    fn unit_vector<N: Size>(&self, x: Vector<A, N>, #[comptime] normalize: bool) -> Vector<A, N> {
        if comptime!(normalize) { x * Vector::new(self.scale) * Vector::new(self.inverse) } else { x }
    }

    /// A gradient divided by the norm: scaled last, for it not to overflow on the way.
    fn divide<N: Size>(&self, gradient: Vector<A, N>, #[comptime] normalize: bool) -> Vector<A, N> {
        if comptime!(normalize) { gradient * Vector::new(self.inverse) * Vector::new(self.scale) } else { gradient }
    }
}

/// Both gradients. A unit has `per_unit` parts of a vector x, of `N` neighbouring elements each, and iterates over a chunk of the vectors y
/// that meet it:
///
/// ```text
/// grad_x = 1/‖x‖ Σ g (ŷ − cos x̂)        grad_y = g/‖y‖ (x̂ − cos ŷ)
/// ```
///
/// `sharing` units share a vector x. Part p of unit u is its part u + p · `sharing`: neighbours read neighbouring memory.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub fn backward<E: Float, N: Size, G: Float, D: Float, A: Float>(
    x: &Tensor<Vector<E, N>>,
    y: &Tensor<Vector<E, N>>,
    grad: &Tensor<G>,
    saved: &Tensor<A>,
    grad_x: &mut Tensor<Vector<D, N>>,
    grad_y: &mut Tensor<Vector<E, N>>,
    limit: InputScalar,
    own_count: usize,
    sum_count: usize,
    chunk: usize,
    block: usize,
    sharing: usize,
    chunk_stride: usize,
    #[comptime] options: BackwardOptions,
    #[define(E, G, D, A)] _dtypes: [ElemType; 4],
) {
    let (vectors, first) = split(ABSOLUTE_POS, sharing);
    let (index, own) = split(vectors, own_count);
    if index * chunk >= sum_count {
        terminate!();
    }
    let limit = limit.get::<A>();
    let (per_unit, normalize) = comptime!((options.per_unit, options.normalize));
    let (x_saved, y_saved) = comptime!(if options.x_is_lhs { (0, NORM) } else { (NORM, 0) });
    // The norm of x is saved with every y; this reads the first.
    let x_norm = SavedNorm::<A>::read(saved, offset(saved, own, 0usize, options.own_axes) + x_saved, normalize);
    let mut unit_x = Array::<Vector<A, N>>::new(per_unit);
    let mut sums = Array::<Vector<A, N>>::new(per_unit);
    #[unroll]
    for part in 0..per_unit {
        sums[part] = Vector::new(A::new(0.0));
        if comptime!(options.normalize || options.grad_y) {
            let x_at = place(x, own, (first + part * sharing) * N::value(), options);
            unit_x[part] = x_norm.unit_vector::<N>(Vector::cast_from(x[x_at / N::value()]), normalize);
        }
    }
    let mut along = A::new(0.0);
    let end = min((index + 1) * chunk, sum_count);
    let mut start = index * chunk;
    while start < end {
        let mut block_sums = Array::<Vector<A, N>>::new(per_unit);
        #[unroll]
        for part in 0..per_unit {
            block_sums[part] = Vector::new(A::new(0.0));
        }
        let mut block_along = A::new(0.0);
        for at in start..min(start + block, end) {
            let g = A::cast_from(grad[pair_offset(grad, own, at, options)]);
            let pair = pair_offset(saved, own, at, options);
            let y_norm = SavedNorm::<A>::read(saved, pair + y_saved, normalize);
            if comptime!(options.normalize && options.grad_x) {
                block_along += g * saved[pair + x_saved];
            }
            #[unroll]
            for part in 0..per_unit {
                let element = (first + part * sharing) * N::value();
                let mut unit_y = Vector::<A, N>::new(A::new(0.0));
                if comptime!(options.normalize || options.grad_x) {
                    let y_at = place(y, own, element, options) + offset(y, at, options.own_axes, options.sum_axes);
                    unit_y = y_norm.unit_vector::<N>(Vector::cast_from(y[y_at / N::value()]), normalize);
                }
                block_sums[part] += Vector::new(g) * unit_y;
                if comptime!(options.grad_y) {
                    let mut given = unit_x[part];
                    if comptime!(options.normalize) {
                        given -= Vector::new(y_norm.cosine) * unit_y;
                    }
                    let given = y_norm.divide::<N>(given * Vector::new(g), normalize);
                    let to = place(&*grad_y, own, element, options) + offset(&*grad_y, at, options.own_axes, options.sum_axes);
                    grad_y[to / N::value()] = store::<E, A, N>(given, limit, options.saturate_y);
                }
            }
        }
        #[unroll]
        for part in 0..per_unit {
            sums[part] += block_sums[part];
        }
        along += block_along;
        start += block;
    }
    if comptime!(options.grad_x) {
        #[unroll]
        for part in 0..per_unit {
            let mut sum = sums[part];
            if comptime!(options.normalize) {
                sum -= Vector::new(along) * unit_x[part];
            }
            let given = x_norm.divide::<N>(sum, normalize);
            let to = index * chunk_stride + place(&*grad_x, own, (first + part * sharing) * N::value(), options);
            grad_x[to / N::value()] = store::<D, A, N>(given, limit, options.saturate_x);
        }
    }
}

/// Where an element of a vector x is, or of the first of the vectors y that meet it.
#[cube]
fn place<T: CubePrimitive>(tensor: &Tensor<T>, own: usize, element: usize, #[comptime] options: BackwardOptions) -> usize {
    let terms_at = comptime!(options.own_axes + options.sum_axes);
    offset(tensor, own, 0usize, options.own_axes) + offset(tensor, element, terms_at, options.term_axes)
}

/// Where the output of a vector x with one of its vectors y is.
#[cube]
fn pair_offset<T: CubePrimitive>(tensor: &Tensor<T>, own: usize, at: usize, #[comptime] options: BackwardOptions) -> usize {
    offset(tensor, own, 0usize, options.own_axes) + offset(tensor, at, options.own_axes, options.sum_axes)
}

/// The sum of the chunks that [`backward`] left of a gradient, one behind the other.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub fn sum_chunks<A: Float, N: Size, E: Float>(
    chunks: &Tensor<Vector<A, N>>,
    out: &mut Tensor<Vector<E, N>>,
    limit: InputScalar,
    count: usize,
    block: usize,
    vectors: usize,
    #[comptime] saturate: bool,
    #[define(A, E)] _dtypes: [ElemType; 2],
) {
    let at = ABSOLUTE_POS;
    if at >= vectors {
        terminate!();
    }
    let mut sum = Vector::<A, N>::new(A::new(0.0));
    let mut start = comptime!(0usize).runtime();
    while start < count {
        let mut part = Vector::<A, N>::new(A::new(0.0));
        for chunk in start..min(start + block, count) {
            let from = chunk * vectors + at;
            part += chunks[from];
        }
        sum += part;
        start += block;
    }
    out[at] = store::<E, A, N>(sum, limit.get::<A>(), saturate);
}
