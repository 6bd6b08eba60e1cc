//! The kernels, `#[cube]` functions only: what they share. [`rows`] has those of row products, [`matrices`] those around a matmul.
//!
//! `E` is the dtype of the inputs, `A` the accumulator, `N` the vector width along the contracted axes. Every tensor is a strided view:
//! row axes first, then the contracted axes ("terms").
//!
//! # Sums
//!
//! A unit adds its terms in blocks of about √steps, and the blocks; units are then added in pairs. So no chain of roundings is longer
//! than 2√steps, where a unit that has a row of 2²² terms of its own, read one by one, takes as many steps.
//!
//! # Norms that neither overflow nor underflow
//!
//! Nothing can be read back to choose another path. So the first pass over a row adds the squares unscaled, and finds the largest
//! |x|. Where that, or epsilon if it is larger, is outside of a range in which products are safe, the unit passes over the row once
//! more, with elements scaled by a power of two. That pass has no barrier: rows may differ in whether they need it.
//!
//! # Uniform control flow
//!
//! WGSL forbids barriers and plane operations where units may have gone different ways: a unit without a row computes the last one
//! again, and does not write.

pub mod matrices;
pub mod rows;

use burn_cubecl::cubecl;
use cubecl::prelude::*;

/// How the units that share a row add their sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reduction {
    /// One unit for each row.
    Unit = 1,
    /// One plane for each row.
    Plane,
    /// Some units of a cube for each row, by shared memory.
    Shared,
}

impl Reduction {
    /// All of them.
    pub const ALL: [Reduction; 3] = [Reduction::Unit, Reduction::Plane, Reduction::Shared];
}

/// What a kernel that reduces rows is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowOptions {
    pub reduction: Reduction,
    /// Units that share a row, a power of two; and rows that share a cube.
    pub units: usize,
    pub cube_rows: usize,
    /// Row axes of a view, and contracted ones behind them.
    pub row_axes: usize,
    pub term_axes: usize,
    /// Whether the accumulator is f64.
    pub wide: bool,
}

/// The offset of an index along some axes of a view.
#[cube]
pub fn offset<T: CubePrimitive>(tensor: &Tensor<T>, index: usize, #[comptime] first: usize, #[comptime] axes: usize) -> usize {
    let mut rest = index;
    let mut offset = comptime!(0usize).runtime();
    #[unroll]
    for place in 0..axes {
        let axis = comptime!(first + axes - 1 - place);
        if comptime!(place + 1 == axes) {
            offset += rest * tensor.stride(axis);
        } else {
            let (quotient, remainder) = split(rest, tensor.shape(axis));
            offset += remainder * tensor.stride(axis);
            rest = quotient;
        }
    }
    offset
}

/// [`offset`] in two tensors, whose axes have the same sizes.
#[cube]
pub fn offsets<T: CubePrimitive>(x: &Tensor<T>, y: &Tensor<T>, index: usize, #[comptime] axes: usize) -> (usize, usize) {
    let mut rest = index;
    let mut x_offset = comptime!(0usize).runtime();
    let mut y_offset = comptime!(0usize).runtime();
    #[unroll]
    for place in 0..axes {
        let axis = comptime!(axes - 1 - place);
        if comptime!(place + 1 == axes) {
            x_offset += rest * x.stride(axis);
            y_offset += rest * y.stride(axis);
        } else {
            let (quotient, remainder) = split(rest, x.shape(axis));
            x_offset += remainder * x.stride(axis);
            y_offset += remainder * y.stride(axis);
            rest = quotient;
        }
    }
    (x_offset, y_offset)
}

/// Quotient and remainder by one division, which costs a GPU tens of other operations.
#[cube]
pub fn split(index: usize, size: usize) -> (usize, usize) {
    let quotient = index / size;
    (quotient, index - quotient * size)
}

/// The index of this unit's row, which may be beyond the last: callers clamp it.
#[cube]
pub fn own_row() -> usize {
    CUBE_POS * CUBE_DIM_Y as usize + UNIT_POS_Y as usize
}

/// A power of two that brings a row into a range where its products can be added, by the larger of its largest element and epsilon; 1 for
/// most rows. After scaling the larger of the two is at least 2⁻⁶ in f32: squares of smaller ones could underflow, and dividing by the scale
/// would magnify what is lost.
#[cube]
pub fn safe_scale<A: Float>(largest: A, #[comptime] wide: bool) -> A {
    if comptime!(wide) {
        // Literals of `A` are f32's: larger powers are products.
        let (up, down) = (A::new(comptime!(2f32.powi(100))), A::new(comptime!(2f32.powi(-100))));
        let (up400, down200) = (up * up * up * up, down * down);
        let down600 = down200 * down200 * down200;
        let small = select(largest < down600, up400 * up400, up400);
        let scale = select(largest < down200, small, A::new(1.0));
        select(largest >= up400, down600, scale)
    } else {
        let small = select(
            largest < A::new(comptime!(2f32.powi(-86))),
            A::new(comptime!(2f32.powi(120))),
            A::new(comptime!(2f32.powi(80))),
        );
        let small = select(largest < A::new(comptime!(2f32.powi(-46))), small, A::new(comptime!(2f32.powi(40))));
        let large = select(
            largest >= A::new(comptime!(2f32.powi(80))),
            A::new(comptime!(2f32.powi(-80))),
            A::new(comptime!(2f32.powi(-40))),
        );
        let scale = select(largest < A::new(comptime!(2f32.powi(-6))), small, A::new(1.0));
        select(largest >= A::new(comptime!(2f32.powi(40))), large, scale)
    }
}

/// What a pass over a row finds.
#[derive(CubeType, Clone, Copy)]
pub struct RowSums<A: Float> {
    pub dot: A,
    pub xx: A,
    pub yy: A,
    pub largest_x: A,
    pub largest_y: A,
}

#[cube]
impl<A: Float> RowSums<A> {
    /// The product and both squares, to be added together.
    pub fn packed(&self) -> Vector<A, Const<4>> {
        let mut packed = Vector::<A, Const<4>>::new(A::new(0.0));
        packed.insert(0usize, self.dot);
        packed.insert(1usize, self.xx);
        packed.insert(2usize, self.yy);
        packed
    }
}

/// Adds over the units that share a row, several sums at once.
#[cube]
pub fn add_units<A: Float, M: Size>(sums: Vector<A, M>, #[comptime] rows: RowOptions) -> Vector<A, M> {
    match comptime!(rows.reduction) {
        Reduction::Unit => sums,
        Reduction::Plane => plane_sum(sums),
        Reduction::Shared => tree::<A, M>(sums, rows, false),
    }
}

/// Finds the largest over the units that share a row, several at once.
#[cube]
pub fn max_units<A: Float, M: Size>(largest: Vector<A, M>, #[comptime] rows: RowOptions) -> Vector<A, M> {
    match comptime!(rows.reduction) {
        Reduction::Unit => largest,
        Reduction::Plane => plane_max(largest),
        Reduction::Shared => tree::<A, M>(largest, rows, true),
    }
}

/// Reduces the values of the units that share a row in pairs.
#[cube]
fn tree<A: Float, M: Size>(value: Vector<A, M>, #[comptime] rows: RowOptions, #[comptime] largest: bool) -> Vector<A, M> {
    let units = comptime!(rows.units);
    let mut values = Shared::<[Vector<A, M>]>::new_slice(comptime!(rows.units * rows.cube_rows));
    let first = UNIT_POS_Y as usize * units;
    let own = first + UNIT_POS_X as usize;
    let mut total = value;
    values[own] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(units.ilog2() as usize) {
        let half = comptime!(units >> (level + 1));
        if (UNIT_POS_X as usize) < half {
            let other = values[own + half];
            total = if comptime!(largest) { max(total, other) } else { total + other };
            values[own] = total;
        }
        sync_cube();
    }
    values[first]
}

/// A vector's norm in its scale, at least epsilon.
#[derive(CubeType, Clone, Copy)]
pub struct Norm<A: Float> {
    pub scale: A,
    /// `1 / max(‖x‖, epsilon) = inverse · scale`. That product may overflow, so the two are applied one after the other.
    pub inverse: A,
    /// Whether the norm is epsilon: a constant.
    pub below_epsilon: bool,
}

#[cube]
pub fn norm_of<A: Float>(square: A, largest: A, scale: A, epsilon: A) -> Norm<A> {
    let norm = square.sqrt();
    let scaled_epsilon = epsilon * scale;
    // Both say the same in exact arithmetic; a root may come out a little below the largest element.
    let below_epsilon = norm < scaled_epsilon && largest * scale < scaled_epsilon;
    // Not `max`, which may drop NaN.
    let divisor = select(norm < scaled_epsilon, scaled_epsilon, norm);
    Norm::<A> { scale, inverse: A::new(1.0) / divisor, below_epsilon }
}

/// Clamps to [-limit, limit]; NaN stays NaN.
#[cube]
pub fn within<A: Float>(x: A, limit: A) -> A {
    select(x > limit, limit, select(x < -limit, -limit, x))
}

/// As [`within`], for gradients, element by element; converted to `D`.
#[cube]
pub fn store<D: Float, A: Float, N: Size>(x: Vector<A, N>, limit: A, #[comptime] saturate: bool) -> Vector<D, N> {
    if comptime!(saturate) {
        let mut limited = Vector::<A, N>::empty();
        #[unroll]
        for place in 0..N::value() {
            limited.insert(place, within::<A>(x.extract(place), limit));
        }
        Vector::cast_from(limited)
    } else {
        Vector::cast_from(x)
    }
}
