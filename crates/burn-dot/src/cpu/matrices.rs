//! Products where both inputs have several vectors for each batch index: matrix products, by the `gemm` crate, and by [`bfloat`].
//!
//! Matrices are read where they lie, by their strides. Norms are applied to the output and to gradients, never to a copy of a whole input.
//! What must be converted (f16, bf16), scaled or brought in line is copied into small blocks first.

use alloc::vec::Vec;
use core::{any::TypeId, ops::Range};

use burn_core::tensor::bf16;

use super::{
    bfloat,
    blocks::{Block, View},
    kernel::{self, Element, Real},
    level::{self, Level, Task},
    norms::Scale,
    runs::{CHUNK, Run, RunMut},
    space::{self, Axes, Axis, DX, DY, NX, NY, OUT, Space, Steps, X, Y, advance},
    threads::{self, SharedPtr},
};

/// Rows of a block that is converted, scaled or rounded: many enough for a matrix product to run at full speed.
const BLOCK_ROWS: usize = 128;
/// Terms of such a block.
const BLOCK_TERMS: usize = 512;
/// Columns of such a block: with the terms, half of a second-level cache.
const BLOCK_COLUMNS: usize = 256;
/// Numbers of an output that is rounded at the end.
const BLOCK_OUTPUT: usize = 1 << 16;
/// Axes of the second matrix that are shorter are brought together: many small products take longer than a copy and one large one.
const JOIN_BELOW: usize = 128;

/// The tensors of a product, each by its first number.
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
    // Tasks are cut along the rows.
    let swap = space.batch.len() == 1 && space.i.len() < space.j.len();
    let (tensors, space, norms) = match swap {
        true => (Matrices { x: tensors.y, y: tensors.x, ..tensors }, space.swapped(), norms.map(|[x, y]| [y, x])),
        false => (tensors, space, norms),
    };
    let product = Product { batch: &space.batch, rows: &space.i, columns: &space.j, sum: &space.k, a: X, b: Y, c: OUT };
    let finish = match norms {
        None => Finish::<'_, T>::Nothing,
        Some([x, y]) => Finish::Scale { by_row: x, by_column: y },
    };
    // SAFETY: the caller's promise.
    unsafe { product.run(tensors.x, tensors.y, tensors.out, None, finish) };
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
        // SAFETY: the caller's promise, here and below.
        unsafe { gradient(tensors, dy, &space.clone().swapped(), norms.map(|[x, y]| [y, x])) };
    }
    if let Some(dx) = dx {
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
    let product = Product { batch: &own, rows: &space.i, columns: &space.k, sum: &sum, a: OUT, b: Y, c: DX };
    let (scales, finish) = match norms {
        None => (None, Finish::<'_, T>::Nothing),
        Some([x, y]) => (Some(y), Finish::Project { x: SharedPtr::new(tensors.x), norms: x }),
    };
    // SAFETY: the caller's promise: the rows of x lie where those of its gradient do.
    unsafe { product.run(tensors.out, tensors.y, dx, scales, finish) };
}

/// What is left to do with complete rows.
enum Finish<'a, T: Element> {
    Nothing,
    /// Multiply each number by the factors of its row and its column, and keep it in [-1, 1].
    Scale {
        by_row: &'a [T::Real],
        by_column: &'a [T::Real],
    },
    /// Multiply each row by its factor, and take from it its part along the vector it is the gradient of.
    Project {
        x: SharedPtr<*const T>,
        norms: &'a [T::Real],
    },
}

/// `c[b, i, j] = Σₖ a[b, i, k] b[b, j, k]`: which axes are which, and which tensors.
struct Product<'a> {
    batch: &'a Axes,
    rows: &'a Axes,
    columns: &'a Axes,
    sum: &'a Axes,
    a: usize,
    b: usize,
    c: usize,
}

impl Product<'_> {
    /// Multiplies, finishes each block of rows that is complete, and rounds.
    ///
    /// `scales` are factors of `b`, one for each term (by [`NY`]).
    unsafe fn run<A, B, C, T>(&self, a: *const A, b: *const B, c: *mut C, scales: Option<&[A::Real]>, finish: Finish<'_, T>)
    where
        T: Element<Real = A::Real>,
        A: Element,
        B: Element<Real = A::Real>,
        C: Element<Real = A::Real>,
    {
        // Axes along which the second matrix alone does not lie in line become one, and that matrix is copied.
        let (joined_columns, joined_sum) = (self.columns.joined_but_for([Y, DY]), self.sum.joined_but_for([Y, DY]));
        let join = |axes: &Axes, joined: &Axes| axes.inner().1.size < JOIN_BELOW && axes.inner().1.size < joined.inner().1.size;
        let (join_columns, join_sum) = (join(self.columns, &joined_columns), join(self.sum, &joined_sum));
        // Rows that the result, and the input that it is the gradient of, do not have in line, become one too: the product is made aside.
        let joined_rows = self.rows.joined_but_for([X, self.c]);
        let join_rows = self.a == OUT && join(self.rows, &joined_rows) && joined_rows.inner().0.len() == 1;
        let (rows_outer, own_rows) = self.rows.inner();
        let (rows_outer, rows, own_rows) = if join_rows {
            (Axes::new([]), joined_rows.inner().1, self.rows.clone())
        } else {
            (rows_outer, own_rows, Axes::new([own_rows]))
        };
        let (columns_outer, columns) = if join_columns { joined_columns.inner() } else { self.columns.inner() };
        let (sum_outer, sum) = if join_sum { joined_sum.inner() } else { self.sum.inner() };
        let copy_a = !A::IS_REAL;
        let copy_b = scales.is_some() || join_columns || join_sum || !B::IS_REAL;
        let aside = join_rows || !C::IS_REAL;
        let width = self.columns.len();
        let is_bf16 = |number: TypeId| number == TypeId::of::<bf16>();
        let as_it_is =
            is_bf16(TypeId::of::<A>()) && is_bf16(TypeId::of::<B>()) && scales.is_none() && !join_columns && !join_sum;

        let units = self.batch.len() * rows_outer.len();
        let work = units.saturating_mul(rows.size).saturating_mul(width).saturating_mul(self.sum.len());
        // Whole units where they share out evenly: a block of rows packs the other matrix anew.
        let even = units.is_multiple_of(threads::count(work));
        let blocks = if even { 1 } else { threads::tasks(work).div_ceil(units).min(rows.size) };
        let mut block = rows.size.div_ceil(blocks);
        if copy_a || !C::IS_REAL {
            block = block.min(BLOCK_ROWS);
        }
        if aside {
            block = block.min((BLOCK_OUTPUT / width).max(1));
        }
        let blocks = rows.size.div_ceil(block);
        let terms = if copy_a || copy_b { sum.size.min(BLOCK_TERMS) } else { sum.size };
        let piece = if copy_b { columns.size.min(BLOCK_COLUMNS) } else { columns.size };
        // Products of bf16 that are complete at once, and finished then, are rounded on their way.
        let whole = (piece, terms) == (columns.size, sum.size);
        let at_once = whole && columns_outer.len() == 1 && sum_outer.len() == 1 && !join_rows;
        let straight = as_it_is && at_once && is_bf16(TypeId::of::<C>()) && matches!(finish, Finish::Nothing);
        let (a, b, c, finish) = (SharedPtr::new(a), SharedPtr::new(b), SharedPtr::new(c), &finish);

        threads::for_each(units * blocks, work, |task| {
            let (a, b, c) = (a.get(), b.get(), c.get());
            let (unit, first) = (task / blocks, task % blocks * block);
            let height = block.min(rows.size - first);
            let (batch, outer) = (unit / rows_outer.len(), unit % rows_outer.len());
            let unit_at = space::sum(self.batch.offset(batch), rows_outer.offset(outer));
            let at = advance(unit_at, &rows, first);

            let mut packed = bfloat::Packed::default();
            if straight {
                // SAFETY: the caller's promise: the matrices lie within the tensors, and these rows of the result belong to this task.
                let done = unsafe {
                    let rows = |of: usize| (height, rows.step[of]);
                    let a = bfloat::Side {
                        at: a.offset(at[self.a]).cast(),
                        lines: rows(self.a),
                        terms: (sum.size, sum.step[self.a]),
                    };
                    let lines = (columns.size, columns.step[self.b]);
                    let b = bfloat::Side { at: b.offset(at[self.b]).cast(), lines, terms: (sum.size, sum.step[self.b]) };
                    let at = c.offset(at[self.c]).cast::<bf16>();
                    let (row_step, column_step) = (rows(self.c).1, columns.step[self.c]);
                    // Along what lies side by side in the result.
                    match row_step == 1 && column_step != 1 {
                        false => bfloat::multiply(bfloat::To { at, row_step, column_step, add: false }, a, b, &mut packed),
                        true => bfloat::multiply(
                            bfloat::To { at, row_step: column_step, column_step: row_step, add: false },
                            b,
                            a,
                            &mut packed,
                        ),
                    }
                };
                if done {
                    return;
                }
            }
            // Not needed where bf16 is multiplied as it is.
            let (mut a_block, mut b_block) = (Vec::new(), Vec::new());
            // By its pointer only: every number is written before it is read.
            let mut scratch = Vec::<A::Real>::with_capacity(if aside { height * width } else { 0 });
            // In the order of the result.
            let own_row = own_rows.inner().1;
            let (row_step, column_step) = match (aside, own_row.step[self.c], columns.step[self.c]) {
                (false, row, column) => (row, column),
                (true, 1, column) if column != 1 => (1, height as isize),
                (true, ..) => (width as isize, 1),
            };
            let panel_at = |panel: usize| match aside {
                true => (panel * columns.size) as isize * column_step,
                false => columns_outer.offset(panel)[self.c],
            };
            let mut tile = Tile {
                // SAFETY: the caller's promise; C is its own real dtype where the product is not made aside.
                at: if aside { scratch.as_mut_ptr() } else { unsafe { c.offset(at[self.c]) }.cast() },
                height,
                row_step,
                column_step,
                places: (0..columns_outer.len()).map(panel_at).collect(),
                rows: own_row,
                columns,
                columns_outer: &columns_outer,
            };
            for panel in 0..columns_outer.len() {
                for column in (0..columns.size).step_by(piece) {
                    let piece = piece.min(columns.size - column);
                    let panel_at = advance(space::sum(at, columns_outer.offset(panel)), &columns, column);
                    for part in 0..sum_outer.len() {
                        for term in (0..sum.size).step_by(terms) {
                            let terms = terms.min(sum.size - term);
                            let from = advance(space::sum(panel_at, sum_outer.offset(part)), &sum, term);
                            // SAFETY: the caller's promise: blocks lie within the tensors; the tile belongs to this task.
                            unsafe {
                                let a = View {
                                    at: a.offset(from[self.a]),
                                    rows: (height, rows.step[self.a]),
                                    columns: (terms, sum.step[self.a]),
                                };
                                let b_view = View {
                                    at: b.offset(from[self.b]),
                                    rows: (terms, sum.step[self.b]),
                                    columns: (piece, columns.step[self.b]),
                                };
                                let (to, add) = (tile.place(panel, column), part + term > 0);
                                if as_it_is && tile.multiply_bf16(to, add, &a, &b_view, &mut packed) {
                                    continue;
                                }
                                let a = if copy_a {
                                    a_block.resize(height * terms, A::Real::default());
                                    a.copy(&mut a_block)
                                } else {
                                    a.cast()
                                };
                                let b = if copy_b {
                                    b_block.resize(terms * piece, A::Real::default());
                                    let (term, column) = (part * sum.size + term, panel * columns.size + column);
                                    self.copy_b(&mut b_block, b, scales, unit_at, term..term + terms, column..column + piece)
                                } else {
                                    b_view.cast()
                                };
                                multiply(to, tile.row_step, tile.column_step, add, a, b);
                            }
                        }
                    }
                }
            }
            let first_row = tile.at;
            for (row, height, from) in own_rows.runs(first..first + height) {
                let at = space::sum(unit_at, from);
                // SAFETY: the caller's promise; the rows of this task belong to it.
                let to = aside.then(|| (unsafe { c.offset(at[self.c]) }, self.c));
                // SAFETY: these rows are part of the tile.
                tile.at = unsafe { first_row.offset(row as isize * tile.row_step) };
                tile.height = height;
                level::vectorized(Finished { tile: &tile, at, finish, to });
            }
        });
    }

    /// Copies these terms and columns of the second matrix, each term multiplied by its factor.
    ///
    /// # Safety
    ///
    /// They lie within one allocation, and there is a factor for each term.
    unsafe fn copy_b<B: Element>(
        &self,
        to: &mut [B::Real],
        b: *const B,
        scales: Option<&[B::Real]>,
        at: Steps,
        terms: Range<usize>,
        columns: Range<usize>,
    ) -> View<B::Real> {
        let (term, column) = (self.sum.inner().1.step, self.columns.inner().1.step);
        let (term_step, column_step) = (term[self.b], column[self.b]);
        let mut block = Block::new(to, (terms.len(), columns.len()), (term_step, column_step));
        for (row, rows, down) in self.sum.runs(terms) {
            for (first, columns, across) in self.columns.runs(columns.clone()) {
                let at = space::sum(at, space::sum(down, across));
                // SAFETY: the caller's promise.
                unsafe {
                    let part = View { at: b.offset(at[self.b]), rows: (rows, term_step), columns: (columns, column_step) };
                    block.copy(part, (row, first), scales.map(|scales| (scales.as_ptr().offset(at[NY]), term[NY])));
                }
            }
        }
        block.view()
    }
}

/// A block that is multiplied: the rest of the work on it.
struct Finished<'a, R, T: Element, C> {
    tile: &'a Tile<'a, R>,
    at: Steps,
    finish: &'a Finish<'a, T>,
    /// Where it belongs if it was made aside, and which tensor that is.
    to: Option<(*mut C, usize)>,
}

impl<R: Real, T: Element<Real = R>, C: Element<Real = R>> Task for Finished<'_, R, T, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, level: S) {
        let Finished { tile, at, finish, to } = self;
        let mut finite = true;
        match finish {
            Finish::Nothing => finite = false,
            Finish::Scale { by_row, by_column } => tile.scale(at, by_row, by_column),
            // SAFETY: the promise made to `gradient`.
            Finish::Project { x, norms } => unsafe { tile.project(level, at, x.get(), norms) },
        }
        if let Some((to, tensor)) = to {
            // SAFETY: the promise made to `Product::run`.
            unsafe { tile.deliver(level, to, tensor, finite) };
        }
    }
}

/// `to = a b`, or `to += a b`.
unsafe fn multiply<R: Real>(to: *mut R, row_step: isize, column_step: isize, add: bool, a: View<R>, b: View<R>) {
    // SAFETY: the caller's promise: the matrices lie within their tensors, and `to` belongs to the caller.
    unsafe {
        gemm::gemm(
            a.rows.0,
            b.columns.0,
            a.columns.0,
            to,
            column_step,
            row_step,
            add,
            a.at,
            a.columns.1,
            a.rows.1,
            b.at,
            b.columns.1,
            b.rows.1,
            R::from_f64(1.0),
            R::from_f64(1.0),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A block of complete rows of a result, in the output itself or aside.
struct Tile<'a, R> {
    at: *mut R,
    height: usize,
    row_step: isize,
    column_step: isize,
    /// Where each run of columns begins.
    places: Vec<isize>,
    rows: Axis,
    columns: Axis,
    columns_outer: &'a Axes,
}

impl<R: Real> Tile<'_, R> {
    #[inline(always)]
    unsafe fn place(&self, panel: usize, column: usize) -> *mut R {
        // SAFETY: the caller's promise.
        unsafe { self.at.offset(self.places[panel] + column as isize * self.column_step) }
    }

    /// [`multiply`] of two matrices of bf16, without copies in f32. False where that cannot be.
    unsafe fn multiply_bf16<A, B>(&self, to: *mut R, add: bool, a: &View<A>, b: &View<B>, packed: &mut bfloat::Packed) -> bool {
        let to = bfloat::To { at: to.cast::<f32>(), row_step: self.row_step, column_step: self.column_step, add };
        let a = bfloat::Side { at: a.at.cast(), lines: a.rows, terms: a.columns };
        let b = bfloat::Side { at: b.at.cast(), lines: b.columns, terms: b.rows };
        // SAFETY: the caller's promise, as that of `multiply`; all three are what they are cast to.
        unsafe { bfloat::multiply(to, a, b, packed) }
    }

    /// Multiplies each number by the factors of its row and its column, and keeps it in [-1, 1].
    #[inline(always)]
    fn scale(&self, at: Steps, by_row: &[R], by_column: &[R]) {
        for panel in 0..self.places.len() {
            let columns_at = at[NY] + self.columns_outer.offset(panel)[NY];
            // SAFETY: the tile belongs to this task; there is a factor for each row and each column.
            unsafe {
                let to = self.place(panel, 0);
                let row = |i: usize| by_row.as_ptr().offset(at[NX] + i as isize * self.rows.step[NX]);
                let column = |j: usize| by_column.as_ptr().offset(columns_at + j as isize * self.columns.step[NY]);
                // Along what lies side by side.
                if self.column_step == 1 && (self.columns.step[NY] == 1 || self.columns.size == 1) {
                    let factors = core::slice::from_raw_parts(column(0), self.columns.size);
                    for i in 0..self.height {
                        let line = core::slice::from_raw_parts_mut(to.offset(i as isize * self.row_step), self.columns.size);
                        let factor = (*row(i)).abs();
                        for (x, &other) in line.iter_mut().zip(factors) {
                            *x = kernel::into_range(*x * factor * other.abs());
                        }
                    }
                } else if self.row_step == 1 && (self.rows.step[NX] == 1 || self.height == 1) {
                    let factors = core::slice::from_raw_parts(row(0), self.height);
                    for j in 0..self.columns.size {
                        let line = core::slice::from_raw_parts_mut(to.offset(j as isize * self.column_step), self.height);
                        let factor = (*column(j)).abs();
                        for (x, &other) in line.iter_mut().zip(factors) {
                            *x = kernel::into_range(*x * factor * other.abs());
                        }
                    }
                } else {
                    for i in 0..self.height {
                        for j in 0..self.columns.size {
                            let x = to.offset(i as isize * self.row_step + j as isize * self.column_step);
                            *x = kernel::into_range(*x * (*row(i)).abs() * (*column(j)).abs());
                        }
                    }
                }
            }
        }
    }

    /// Multiplies each row by its factor, and takes from it its part along the vector it is the gradient of:
    /// `s (p − x (x·p) s²)`.
    #[inline(always)]
    unsafe fn project<S: Level, T: Element<Real = R>>(&self, level: S, at: Steps, x: *const T, norms: &[R]) {
        let x_buffer = &mut [T::default(); CHUNK];
        let p_buffer = &mut [R::default(); CHUNK];
        let number = |i: usize| (at[NX] + i as isize * self.rows.step[NX]) as usize;
        let norm = |i: usize| Scale(norms[number(i)].to_f64());
        let scale = |i: usize| norm(i).inverse();
        let along_factor = |i: usize| norm(i).inverse() * norm(i).projected();
        let (x_row, x_column) = (self.rows.step[X], self.columns.step[X]);
        if x_row == 1 && self.row_step == 1 && (self.height > 1 || self.columns.size == 1) {
            // The numbers of different rows lie side by side: all rows of a piece at once.
            let (mut along, mut scales) = ([0.0; CHUNK], [0.0; CHUNK]);
            for first in (0..self.height).step_by(CHUNK) {
                let height = CHUNK.min(self.height - first);
                let (along, scales) = (&mut along[..height], &mut scales[..height]);
                along.fill(0.0);
                for write in [false, true] {
                    if write {
                        for (i, (along, scaled)) in along.iter_mut().zip(scales.iter_mut()).enumerate() {
                            *along *= along_factor(first + i);
                            *scaled = scale(first + i);
                        }
                    }
                    for panel in 0..self.places.len() {
                        let from = at[X] + first as isize + self.columns_outer.offset(panel)[X];
                        for j in 0..self.columns.size {
                            // SAFETY: the caller's promise: x lies where its gradient does; the tile belongs to this task.
                            unsafe {
                                let x = Run { at: x.offset(from + j as isize * x_column), step: 1, len: height };
                                let x = if let Some(x) = x.as_slice() { x } else { x.gather(x_buffer) };
                                let p = core::slice::from_raw_parts_mut(self.place(panel, j).add(first), height);
                                if write {
                                    kernel::combine_each(level, p, scales, along, x);
                                } else {
                                    kernel::accumulate_products(level, along, x, p);
                                }
                            }
                        }
                    }
                }
            }
            return;
        }
        for i in 0..self.height {
            let mut along = 0.0;
            for write in [false, true] {
                for panel in 0..self.places.len() {
                    let from = at[X] + i as isize * x_row + self.columns_outer.offset(panel)[X];
                    for j in (0..self.columns.size).step_by(CHUNK) {
                        let len = CHUNK.min(self.columns.size - j);
                        // SAFETY: as above.
                        unsafe {
                            let x = Run { at: x.offset(from + j as isize * x_column), step: x_column, len };
                            let x = if let Some(x) = x.as_slice() { x } else { x.gather(x_buffer) };
                            let p = self.place(panel, j).offset(i as isize * self.row_step);
                            if !write {
                                let p = Run { at: p.cast_const(), step: self.column_step, len };
                                let p = if let Some(p) = p.as_slice() { p } else { p.gather(p_buffer) };
                                along += kernel::dot(level, x, p);
                            } else if self.column_step == 1 {
                                kernel::combine_in_place(level, core::slice::from_raw_parts_mut(p, len), scale(i), along, x);
                            } else {
                                for (j, x) in x.iter().enumerate() {
                                    let p = p.offset(j as isize * self.column_step);
                                    *p = R::from_f64(scale(i) * (*p).to_f64() - along * x.to_f64());
                                }
                            }
                        }
                    }
                }
                along *= along_factor(i);
            }
        }
    }

    /// Rounds the tile, which was made aside, to where it belongs.
    #[inline(always)]
    unsafe fn deliver<S: Level, C: Element<Real = R>>(&self, level: S, to: *mut C, tensor: usize, finite: bool) {
        let mut buffer = [C::default(); CHUNK];
        let (row, column) = (self.rows.step[tensor], self.columns.step[tensor]);
        for panel in 0..self.places.len() {
            let panel_at = self.columns_outer.offset(panel)[tensor];
            // Along what lies side by side here.
            let ((lines, line_step, line), (len, step)) = if self.column_step == 1 {
                ((self.height, self.row_step, row), (self.columns.size, column))
            } else {
                ((self.columns.size, self.column_step, column), (self.height, row))
            };
            for i in 0..lines as isize {
                for first in (0..len).step_by(CHUNK) {
                    let len = CHUNK.min(len - first);
                    // SAFETY: the caller's promise.
                    unsafe {
                        let from = self.place(panel, 0).offset(i * line_step + first as isize).cast_const();
                        let from = core::slice::from_raw_parts(from, len);
                        let at = to.offset(panel_at + i * line + first as isize * step);
                        RunMut { at, step, len }.fill(
                            &mut buffer,
                            #[inline(always)]
                            |to| C::narrow(level, from, to, finite),
                        );
                    }
                }
            }
        }
    }
}
