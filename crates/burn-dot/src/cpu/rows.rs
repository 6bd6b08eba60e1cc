//! Products where one input has a single vector for each batch index: rows with rows, and vectors with matrices.
//!
//! `out[b, j] = Σₖ x[b, k] y[b, j, k]`. Every row is read once from memory: its product and its norm come from one pass, and in the
//! backward pass its gradient is written while it is still in the cache. Memory sets the pace.

use alloc::vec;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{
    kernel::{self, CHUNK, Element, Real, Run, RunMut},
    space::{self, Axes, Axis, DX, DY, OUT, Space, Steps, X, Y},
    threads::{self, Ptr},
};

/// The tensors of a product whose `x` has nothing free, each by its first number.
#[derive(Clone, Copy)]
pub(super) struct Rows<T, O> {
    pub x: *const T,
    pub y: *const T,
    /// The output, or its gradient.
    pub out: *mut O,
    /// The gradients, where wanted.
    pub dx: Option<*mut T>,
    pub dy: Option<*mut T>,
}

/// The product. False where numbers were met whose squares f64 cannot hold: the output is then not to be used.
///
/// # Safety
///
/// Every index of `space` lies within the tensors, nothing in it is empty, and nothing else reads or writes `out`.
pub(super) unsafe fn forward<T, O>(tensors: Rows<T, O>, space: &Space, floor: Option<f64>) -> bool
where
    T: Element,
    O: Element<Real = T::Real>,
{
    let (vectors, n) = (space.batch.len(), space.j.len());
    let pieces = Pieces::new::<T>(&space.k, false);
    let tensors = Ptr(tensors);
    all_ranges(vectors * n, space.k.len(), |rows| {
        let tensors = tensors.get();
        let mut x_square = None;
        let mut last = usize::MAX;
        for row in rows {
            let (vector, j) = if n == 1 { (row, 0) } else { (row / n, row % n) };
            if core::mem::replace(&mut last, vector) != vector {
                x_square = None;
            }
            let at = space::sum(space.batch.offset(vector), space.j.offset(j));
            // SAFETY: the caller's promise.
            let out = match floor {
                None => unsafe { tensors.product(&pieces, at) },
                Some(floor) => {
                    let sums = unsafe { tensors.sums(&pieces, at, &mut x_square) };
                    let Some(scaled) = Scaled::new::<T::Real>(sums, floor) else { return false };
                    into_range(scaled.cosine)
                }
            };
            // SAFETY: the caller's promise; no two rows share a place in the output.
            unsafe { *tensors.out.offset(at[OUT]) = O::rounded(<T::Real>::from_f64(out)) };
        }
        true
    })
}

/// The gradients that are wanted. False as in [`forward`].
///
/// # Safety
///
/// Every index of `space` lies within the tensors, nothing in it is empty, and nothing else reads or writes `dx` and `dy`. These may
/// be `x` and `y` themselves where `in_place` says so and each number of `x` and `y` is met once.
pub(super) unsafe fn backward<T, O>(tensors: Rows<T, O>, space: &Space, floor: Option<f64>, in_place: bool) -> bool
where
    T: Element,
    O: Element<Real = T::Real>,
{
    let pieces = Pieces::new::<T>(&space.k, in_place);
    // Where x is repeated along the batch its gradient collects a sum, as it does along j.
    let (own, repeated) = match tensors.dx {
        Some(_) => space.batch.split_by(DX),
        None => (space.batch.clone(), Axes::new([])),
    };
    let many = repeated.followed_by(&space.j);
    let (vectors, n, k) = (own.len(), many.len(), space.k.len());
    let tensors = Ptr(tensors);
    if n == 1 {
        return all_ranges(vectors, k, |rows| {
            let tensors = tensors.get();
            // SAFETY: the caller's promise; no two rows share a place.
            rows.into_iter().all(|row| unsafe { tensors.pair_gradients(&pieces, own.offset(row), floor) })
        });
    }

    // A vector with many partners. Where there are few vectors, several tasks share one, and their sums are added in the end.
    let tasks = threads::tasks(vectors.saturating_mul(n).saturating_mul(k));
    let shares = if vectors >= tasks { 1 } else { tasks.div_ceil(vectors).min(n) };
    let gather = |vector: usize, share: usize, sum: &mut [f64]| {
        let (tensors, start) = (tensors.get(), own.offset(vector));
        let partners = (share * n / shares..(share + 1) * n / shares).map(|j| space::sum(start, many.offset(j)));
        // SAFETY: the caller's promise; no two partners share a place in dy.
        unsafe { tensors.partner_gradients(&pieces, partners, floor, sum) }
    };
    let finish = |vector: usize, along: f64, sum: &[f64]| {
        // SAFETY: the caller's promise; each vector is finished once.
        unsafe { tensors.get().collected_gradient(&pieces, own.offset(vector), floor, along, sum) }
    };
    if shares == 1 {
        return all_ranges(vectors, n * k, |range| {
            let mut sum = vec![0.0; if tensors.get().dx.is_some() { k } else { 0 }];
            range.into_iter().all(|vector| {
                sum.fill(0.0);
                gather(vector, 0, &mut sum).is_some_and(|along| finish(vector, along, &sum))
            })
        });
    }
    let width = if tensors.get().dx.is_some() { k } else { 0 };
    let mut sums = vec![(0.0, vec![0.0; width]); vectors * shares];
    let slots = Ptr(sums.as_mut_ptr());
    let trusted = all_ranges(vectors * shares, n * k / shares, |range| {
        range.into_iter().all(|task| {
            // SAFETY: each task has a slot of its own, and the slots outlive the tasks.
            let (along, sum) = unsafe { &mut *slots.get().add(task) };
            let gathered = gather(task / shares, task % shares, sum);
            *along = gathered.unwrap_or(f64::NAN);
            gathered.is_some()
        })
    });
    trusted
        && sums.chunks_mut(shares).enumerate().all(|(vector, shares)| {
            let (first, rest) = shares.split_first_mut().expect("at least one share");
            for (along, sum) in rest {
                first.0 += *along;
                first.1.iter_mut().zip(sum).for_each(|(total, more)| *total += *more);
            }
            finish(vector, first.0, &first.1)
        })
}

/// Cuts the work into ranges and runs each with the widest vectors; true if all of them are.
fn all_ranges(count: usize, cost: usize, task: impl Fn(core::ops::Range<usize>) -> bool + Send + Sync) -> bool {
    let all = AtomicBool::new(true);
    threads::for_each_range(count, cost, |range| {
        if !kernel::vectorized(
            #[inline(always)]
            || task(range),
        ) {
            all.store(false, Ordering::Relaxed);
        }
    });
    all.into_inner()
}

/// How the contracted axes are walked: in pieces of runs.
struct Pieces {
    outer: Axes,
    inner: Axis,
    /// Numbers of a run at a time.
    len: usize,
    /// Whether the inputs can be read where they are.
    as_they_are: bool,
}

impl Pieces {
    fn new<T: Element>(k: &Axes, in_place: bool) -> Self {
        let (outer, inner) = k.inner();
        let as_they_are = !in_place && T::as_real(&[]).is_some() && [X, Y].iter().all(|&t| inner.step[t] == 1);
        // Gradients are written in pieces too, unless they lie side by side.
        let whole = as_they_are && [DX, DY].iter().all(|&t| matches!(inner.step[t], 0 | 1));
        Pieces { len: if whole { inner.size } else { CHUNK.min(inner.size) }, outer, inner, as_they_are }
    }
}

impl<T: Element, O: Element<Real = T::Real>> Rows<T, O> {
    /// Calls `f(x, y, place, first)` with the pieces of a row and its partner, in the dtype to multiply in.
    #[inline(always)]
    unsafe fn for_each_piece(
        &self,
        pieces: &Pieces,
        row: Steps,
        mut f: impl FnMut(&[T::Real], &[T::Real], Steps, core::ops::Range<usize>),
    ) {
        let Pieces { outer, inner, len, as_they_are } = pieces;
        for block in 0..outer.len() {
            let block_at = space::sum(row, outer.offset(block));
            for from in (0..inner.size).step_by(*len) {
                let len = (*len).min(inner.size - from);
                let at: Steps = core::array::from_fn(|t| block_at[t] + from as isize * inner.step[t]);
                let first = block * inner.size + from;
                // SAFETY: the caller's promise: every index lies within the tensors.
                let (x, y) = unsafe { (self.x.offset(at[X]), self.y.offset(at[Y])) };
                let (x, y) = (Run { at: x, step: inner.step[X], len }, Run { at: y, step: inner.step[Y], len });
                if *as_they_are {
                    // SAFETY: nothing writes to the inputs unless in place, which is not as they are.
                    if let (Some(x), Some(y)) = unsafe { (x.as_real(), y.as_real()) } {
                        f(x, y, at, first..first + len);
                        continue;
                    }
                }
                let mut buffers = [[T::Real::default(); CHUNK]; 2];
                let [x_buffer, y_buffer] = &mut buffers;
                // SAFETY: as above; pieces that are not as they are fit the buffer.
                let (x, y) = unsafe { (x.copy(x_buffer), y.copy(y_buffer)) };
                f(x, y, at, first..first + len);
            }
        }
    }

    /// `Σ x y` of one row.
    #[inline(always)]
    unsafe fn product(&self, pieces: &Pieces, at: Steps) -> f64 {
        let mut xy = 0.0;
        // SAFETY: the caller's promise.
        unsafe { self.for_each_piece(pieces, at, |x, y, _, _| xy += kernel::dot(x, y)) };
        xy
    }

    /// `Σ x x`, `Σ x y`, `Σ y y` of one row; the first is remembered while the vector stays the same.
    #[inline(always)]
    unsafe fn sums(&self, pieces: &Pieces, at: Steps, x_square: &mut Option<f64>) -> [f64; 3] {
        let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
        // SAFETY: the caller's promise, in both.
        if let Some(known) = *x_square {
            xx = known;
            unsafe {
                self.for_each_piece(pieces, at, |x, y, _, _| {
                    let more = kernel::dot_and_square(x, y);
                    (xy, yy) = (xy + more.0, yy + more.1);
                })
            };
        } else {
            unsafe {
                self.for_each_piece(pieces, at, |x, y, _, _| {
                    let more = kernel::dot_and_squares(x, y);
                    (xx, xy, yy) = (xx + more.0, xy + more.1, yy + more.2);
                })
            };
            *x_square = Some(xx);
        }
        [xx, xy, yy]
    }

    /// The gradient of the output at a place.
    #[inline(always)]
    unsafe fn grad(&self, at: Steps) -> f64 {
        // SAFETY: the caller's promise.
        unsafe { *self.out.offset(at[OUT]) }.real().to_f64()
    }

    /// Both gradients of a row with its only partner.
    #[inline(always)]
    unsafe fn pair_gradients(&self, pieces: &Pieces, at: Steps, floor: Option<f64>) -> bool {
        // SAFETY: the caller's promise, here and below.
        let g = unsafe { self.grad(at) };
        let Some(floor) = floor else {
            unsafe {
                self.for_each_piece(pieces, at, |x, y, at, _| {
                    self.write(self.dx, DX, pieces, at, false, x.len(), |to| kernel::scale(to, g, y));
                    self.write(self.dy, DY, pieces, at, false, x.len(), |to| kernel::scale(to, g, x));
                })
            };
            return true;
        };
        let sums = unsafe { self.sums(pieces, at, &mut None) };
        let Some(Scaled { x: sx, y: sy, cosine }) = Scaled::new::<T::Real>(sums, floor) else { return false };
        let w = g * sx.inverse * sy.inverse;
        let (px, py) = (g * cosine * sx.projected(), g * cosine * sy.projected());
        unsafe {
            self.for_each_piece(pieces, at, |x, y, at, _| {
                self.write(self.dx, DX, pieces, at, true, x.len(), |to| kernel::combine(to, (w, y), (-px, x)));
                self.write(self.dy, DY, pieces, at, true, x.len(), |to| kernel::combine(to, (w, x), (-py, y)));
            })
        };
        true
    }

    /// The gradients of the partners of one vector; adds to `sum` what they give to the gradient of its direction, and returns how
    /// much of that lies along it.
    #[inline(always)]
    unsafe fn partner_gradients(
        &self,
        pieces: &Pieces,
        partners: impl Iterator<Item = Steps>,
        floor: Option<f64>,
        sum: &mut [f64],
    ) -> Option<f64> {
        let mut along = 0.0;
        let mut x_square = None;
        for at in partners {
            // SAFETY: the caller's promise, here and below.
            let g = unsafe { self.grad(at) };
            let (to_y, to_x, from_y) = match floor {
                None => (g, g, None),
                Some(floor) => {
                    let sums = unsafe { self.sums(pieces, at, &mut x_square) };
                    let Scaled { x: sx, y: sy, cosine } = Scaled::new::<T::Real>(sums, floor)?;
                    along += g * cosine;
                    (g * sx.inverse * sy.inverse, g * sy.inverse, Some(g * cosine * sy.projected()))
                }
            };
            unsafe {
                self.for_each_piece(pieces, at, |x, y, at, range| {
                    if !sum.is_empty() {
                        kernel::accumulate(&mut sum[range], to_x, y);
                    }
                    self.write(self.dy, DY, pieces, at, floor.is_some(), x.len(), |to| match from_y {
                        None => kernel::scale(to, to_y, x),
                        Some(py) => kernel::combine(to, (to_y, x), (-py, y)),
                    });
                })
            };
        }
        Some(along)
    }

    /// The gradient of a vector from what its partners gave.
    #[inline(always)]
    unsafe fn collected_gradient(&self, pieces: &Pieces, at: Steps, floor: Option<f64>, along: f64, sum: &[f64]) -> bool {
        if self.dx.is_none() {
            return true;
        }
        let (factor, px) = match floor {
            None => (1.0, 0.0),
            Some(floor) => {
                let mut xx = 0.0;
                // SAFETY: the caller's promise, here and below.
                unsafe { self.for_each_piece(pieces, at, |x, _, _, _| xx += kernel::dot(x, x)) };
                let Some(x) = Scale::new::<T::Real>(xx, floor) else { return false };
                (x.inverse, along * x.projected())
            }
        };
        unsafe {
            self.for_each_piece(pieces, at, |x, _, at, range| {
                self.write(self.dx, DX, pieces, at, floor.is_some(), x.len(), |to| {
                    for ((to, &sum), x) in to.iter_mut().zip(&sum[range]).zip(x) {
                        let projected = if floor.is_some() { px * x.to_f64() } else { 0.0 };
                        *to = <T::Real>::from_f64(factor * sum - projected);
                    }
                });
            })
        };
        true
    }

    /// Fills a piece of a gradient, where it is wanted.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    unsafe fn write(
        &self,
        gradient: Option<*mut T>,
        tensor: usize,
        pieces: &Pieces,
        at: Steps,
        saturate: bool,
        len: usize,
        write: impl FnOnce(&mut [T::Real]),
    ) {
        if let Some(gradient) = gradient {
            // SAFETY: the caller's promise.
            let at = unsafe { gradient.offset(at[tensor]) };
            unsafe { RunMut { at, step: pieces.inner.step[tensor], len, saturate }.fill(write) };
        }
    }
}

/// The divisor of a vector, `1 / max(‖x‖, floor)`, and whether the norm is above the floor.
#[derive(Clone, Copy)]
struct Scale {
    inverse: f64,
    above: bool,
}

impl Scale {
    /// From the sum of squares. `None` where squares may have overflowed or lost digits.
    #[inline(always)]
    fn new<R: Real>(square: f64, floor: f64) -> Option<Self> {
        let (norm, floor) = (square.sqrt(), floor.max(R::SMALLEST));
        let divisor = norm.max(floor);
        R::NORMS.contains(&divisor).then(|| Scale { inverse: 1.0 / divisor, above: norm >= floor })
    }

    /// The factor of the projection.
    #[inline(always)]
    fn projected(self) -> f64 {
        if self.above { self.inverse * self.inverse } else { 0.0 }
    }
}

/// A row and its partner, normalized.
struct Scaled {
    x: Scale,
    y: Scale,
    cosine: f64,
}

impl Scaled {
    #[inline(always)]
    fn new<R: Real>([xx, xy, yy]: [f64; 3], floor: f64) -> Option<Self> {
        let (x, y) = (Scale::new::<R>(xx, floor)?, Scale::new::<R>(yy, floor)?);
        Some(Scaled { x, y, cosine: xy * x.inverse * y.inverse })
    }
}

/// Clamps to [-1, 1]; NaN stays NaN.
#[inline(always)]
fn into_range(x: f64) -> f64 {
    x.clamp(-1.0, 1.0)
}
