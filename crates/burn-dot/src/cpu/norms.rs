//! Norms of vectors, as the factors `1 / max(‖x‖, floor)`.

use alloc::{vec, vec::Vec};
use core::{
    ops::{Range, RangeInclusive},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    kernel::{self, Compensated, Element, LINES, Real},
    runs::{CHUNK, Run},
    simd::{self, Isa, Task},
    space::{Axes, NX, NY, Space, X, Y, advance},
    threads::{self, SharedPtr},
};

/// The factor of a vector, as one number: negative where the norm is below the floor.
#[derive(Clone, Copy)]
pub(super) struct Scale(pub f64);

impl Scale {
    /// From the sum of squares.
    #[inline(always)]
    pub fn new<R: Real>(square: f64, floor: f64) -> Self {
        let (norm, floor) = (kernel::sqrt(square), floor.max(R::SMALLEST));
        let sign = if norm >= floor { 1.0 } else { -1.0 };
        Scale(sign / norm.max(floor))
    }

    /// Whether the larger of norm and floor is in a range. The range is symmetric under `1/x`, so the inverse is tested.
    #[inline(always)]
    pub fn is_within(self, trusted: RangeInclusive<f64>) -> bool {
        trusted.contains(&self.inverse())
    }

    #[inline(always)]
    pub fn inverse(self) -> f64 {
        self.0.abs()
    }

    /// The factor of the projection.
    #[inline(always)]
    pub fn projected(self) -> f64 {
        if self.0.is_sign_positive() { self.0 * self.0 } else { 0.0 }
    }

    /// The projection coefficient, and an upper bound on each term of the gradient.
    #[inline(always)]
    pub fn part_along(self, g: f64, cosine: f64) -> (f64, f64) {
        (g * cosine * self.projected(), g.abs() * self.inverse())
    }
}

/// The [`Scale`]s of all vectors of `x`, then of `y`. `None` where a norm is so large or so small that the plain product of the vectors
/// might overflow or lose digits.
///
/// # Safety
///
/// Every index of `space` lies within the tensors, which have so many vectors, and nothing in it is empty.
pub(super) unsafe fn of_both<T: Element>(
    x: *const T,
    y: *const T,
    space: &Space,
    [x_count, y_count]: [usize; 2],
    floor: f64,
) -> Option<Vec<T::Real>> {
    let mut norms = vec![T::Real::default(); x_count + y_count];
    let (of_x, of_y) = norms.split_at_mut(x_count);
    // SAFETY: the caller's promise.
    let trusted =
        unsafe { of_one(of_x, x, space, &space.i, [X, NX], floor) && of_one(of_y, y, space, &space.j, [Y, NY], floor) };
    trusted.then_some(norms)
}

/// False as [`of_both`].
unsafe fn of_one<T: Element>(
    norms: &mut [T::Real],
    x: *const T,
    space: &Space,
    free: &Axes,
    [tensor, number]: [usize; 2],
    floor: f64,
) -> bool {
    let (outer, inner) = space.batch.split_by(number).0.followed_by(free).inner();
    let blocks = inner.size.div_ceil(CHUNK);
    let (count, terms) = (outer.len() * blocks, space.k.len());
    // The vectors are numbered in the order of the axes, so those of a block are contiguous, and all of them fit.
    assert!(norms.len() == outer.len() * inner.size, "{} norms of {} vectors", norms.len(), outer.len() * inner.size);
    // Few and long vectors are cut along their terms.
    let work = norms.len().saturating_mul(terms);
    let parts = threads::count(work).div_ceil(count).min(terms.div_ceil(PART_TERMS));
    let mut squares = vec![0.0; if parts > 1 { parts * norms.len() } else { 0 }];
    let trusted = AtomicBool::new(true);
    let all = norms.len();
    let (x, norms_at, squares_at) =
        (SharedPtr::new(x), SharedPtr::new(norms.as_mut_ptr()), SharedPtr::new(squares.as_mut_ptr()));
    threads::for_each_range(count * parts, work / (count * parts), |range| {
        let (x, norms, squares) = (x.get(), norms_at.get(), squares_at.get());
        for task in range {
            let (block, part) = (task / parts, task % parts);
            let first = block % blocks * CHUNK;
            let at = advance(outer.offset(block / blocks), &inner, first);
            let vectors = CHUNK.min(inner.size - first);
            let index = block / blocks * inner.size + first;
            let terms = threads::part(terms, parts, part);
            let mut local = [0.0; CHUNK];
            // SAFETY: the caller's promise; each block has norms, and each of its parts squares, of its own.
            unsafe {
                let to = match parts {
                    1 => &mut local[..vectors],
                    _ => core::slice::from_raw_parts_mut(squares.add(part * all + index), vectors),
                };
                let x = x.offset(at[tensor]);
                simd::dispatch(Squares { x, step: inner.step[tensor], k: &space.k, terms, tensor, to });
                if parts == 1 && !scales(to, core::slice::from_raw_parts_mut(norms.add(index), vectors), floor) {
                    trusted.store(false, Ordering::Relaxed);
                }
            }
        }
    });
    if parts > 1 {
        let (first, rest) = squares.split_at_mut(all);
        rest.chunks(all).for_each(|more| first.iter_mut().zip(more).for_each(|(square, more)| *square += more));
        return scales(first, norms, floor);
    }
    trusted.into_inner()
}

/// Terms of a part, at least.
const PART_TERMS: usize = 4096;

/// From sums of squares. False as [`of_both`].
fn scales<R: Real>(squares: &[f64], to: &mut [R], floor: f64) -> bool {
    let mut trusted = true;
    for (to, &square) in to.iter_mut().zip(squares) {
        let scale = Scale::new::<R>(square, floor);
        // Also below the floor: products of tiny vectors would be subnormal.
        let tiny = square > 0.0 && kernel::sqrt(square) < *R::MATRIX_NORMS.start();
        trusted &= scale.is_within(R::MATRIX_NORMS) && !tiny;
        *to = R::from_f64(scale.0);
    }
    trusted
}

/// The squares of vectors at equal strides, summed over these terms.
struct Squares<'a, T: Element> {
    x: *const T,
    step: isize,
    k: &'a Axes,
    terms: Range<usize>,
    tensor: usize,
    to: &'a mut [f64],
}

/// Rows of memory whose squares are added before their sum goes to one that is compensated.
const PARTIAL: usize = 16 * LINES;

/// Sums of squares below this may have lost some that f32 does not hold.
const LOST: f64 = 1e-18;

impl<T: Element> Task for Squares<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(mut self, isa: S) {
        // Vectors that lie across memory are read line by line, those that lie along it one after the other.
        // SAFETY: the promise made to `of_both`.
        unsafe {
            let across = self.step == 1 && self.k.inner().1.step[self.tensor] != 1;
            if across {
                self.across(isa);
            }
            for vector in 0..self.to.len() {
                if !across {
                    self.to[vector] = self.along::<S, false>(isa, vector);
                }
                // Zeros, or squares that f32 lost.
                if self.to[vector] < LOST {
                    self.to[vector] = self.along::<S, true>(isa, vector);
                }
            }
        }
    }
}

impl<T: Element> Squares<'_, T> {
    /// Lines of memory, each with an element of every vector. Short ones that follow one another are read as one.
    #[inline(always)]
    unsafe fn across<S: Isa>(&mut self, isa: S) {
        let Squares { x, k, ref terms, tensor, ref mut to, .. } = *self;
        let (vectors, k_step) = (to.len(), k.inner().1.step[tensor]);
        let group = if k_step == vectors as isize { CHUNK / vectors } else { 1 };
        let (mut partial, mut squares, mut lost) = ([0.0; CHUNK], [0.0; CHUNK], [0.0; CHUNK]);
        for (_, len, from) in k.runs(terms.clone()) {
            // SAFETY: the caller's promise.
            let x = unsafe { x.offset(from[tensor]) };
            let mut rest = 0..len;
            // First by groups, then what is left of them, line by line.
            for group in [group, 1] {
                let width = vectors * group;
                let (partial, squares, lost) = (&mut partial[..width], &mut squares[..width], &mut lost[..width]);
                while rest.len() >= group {
                    let terms = rest.start..rest.end.min(rest.start + PARTIAL * group);
                    partial.fill(0.0);
                    while terms.end - rest.start >= group {
                        let mut lines: [&[T]; LINES] = [&[]; LINES];
                        let lines = &mut lines[..LINES.min((terms.end - rest.start) / group)];
                        for line in lines.iter_mut() {
                            // SAFETY: as above: each term has a line of contiguous elements, and those of a group are contiguous.
                            *line = unsafe { core::slice::from_raw_parts(x.offset(rest.start as isize * k_step), width) };
                            rest.start += group;
                        }
                        T::add_squares(isa, partial, lines);
                    }
                    kernel::add_compensated(squares, lost, partial);
                }
            }
        }
        for (vector, to) in to.iter_mut().enumerate() {
            let mut square = Compensated::default();
            for i in (vector..vectors * group).step_by(vectors) {
                square.add(kernel::with_lost(squares[i], lost[i]));
            }
            *to = square.total();
        }
    }

    /// The square of one vector, contiguous or gathered; all in f64, if `EXACT`.
    #[inline(always)]
    unsafe fn along<S: Isa, const EXACT: bool>(&self, isa: S, vector: usize) -> f64 {
        let k_step = self.k.inner().1.step[self.tensor];
        let mut buffer = [T::default(); CHUNK];
        let mut square = Compensated::default();
        for (_, len, from) in self.k.runs(self.terms.clone()) {
            for term in (0..len).step_by(CHUNK) {
                let at = from[self.tensor] + vector as isize * self.step + term as isize * k_step;
                // SAFETY: the caller's promise.
                unsafe {
                    let run = Run { at: self.x.offset(at), step: k_step, len: CHUNK.min(len - term) };
                    let run = if let Some(run) = run.as_slice() { run } else { run.gather(&mut buffer) };
                    square.add(if EXACT { kernel::dot(isa, run, run) } else { T::dot(isa, run, run) });
                }
            }
        }
        square.total()
    }
}
