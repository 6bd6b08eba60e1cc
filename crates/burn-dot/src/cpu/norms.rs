//! Norms of vectors, as the factors `1 / max(‖x‖, floor)`.

use alloc::{vec, vec::Vec};
use core::{
    ops::{Range, RangeInclusive},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    kernel::{self, Element, LINES, Real},
    level::{self, Level, Task},
    runs::{CHUNK, Run},
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

    /// Whether the larger of norm and floor is one of these numbers, which are the inverses of each other: so the inverse is looked at.
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

    /// The factor of the part along the vector that its gradient is without, and a number that no term of the gradient is
    /// larger than, but for rounding, which is less than half a step of a half.
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
                level::vectorized(Squares { x, step: inner.step[tensor], k: &space.k, terms, tensor, to });
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
        trusted &= scale.is_within(R::MATRIX_NORMS);
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

impl<T: Element> Task for Squares<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, level: S) {
        let Squares { x, step, k, terms, tensor, to } = self;
        let k_step = k.inner().1.step[tensor];
        let (mut squares, mut lost, mut buffer) = ([0.0; CHUNK], [0.0; CHUNK], [T::default(); CHUNK]);
        let (squares, lost) = (&mut squares[..to.len()], &mut lost[..to.len()]);
        for (_, len, from) in k.runs(terms) {
            // SAFETY: the promise made to `of_both`, here and below.
            let x = unsafe { x.offset(from[tensor]) };
            if step == 1 && k_step != 1 {
                for first in (0..len).step_by(PARTIAL) {
                    to.fill(0.0);
                    for term in (first..len.min(first + PARTIAL)).step_by(LINES) {
                        let mut lines: [&[T]; LINES] = [&[]; LINES];
                        let lines = &mut lines[..LINES.min(len - term)];
                        for (i, line) in lines.iter_mut().enumerate() {
                            // SAFETY: as above: each term has a row of contiguous elements.
                            *line = unsafe { core::slice::from_raw_parts(x.offset((term + i) as isize * k_step), to.len()) };
                        }
                        T::add_squares(level, to, lines);
                    }
                    kernel::add_compensated(squares, lost, to);
                }
                continue;
            }
            for (i, (square, lost)) in squares.iter_mut().zip(&mut *lost).enumerate() {
                for term in (0..len).step_by(CHUNK) {
                    let len = CHUNK.min(len - term);
                    // A square that f32 does not hold is nothing beside those of a norm that is trusted, or infinite.
                    // SAFETY: as above.
                    unsafe {
                        let run = Run { at: x.offset(i as isize * step + term as isize * k_step), step: k_step, len };
                        let run = if let Some(run) = run.as_slice() { run } else { run.gather(&mut buffer) };
                        kernel::add_compensated(
                            core::slice::from_mut(square),
                            core::slice::from_mut(lost),
                            &[T::dot(level, run, run)],
                        );
                    }
                }
            }
        }
        for (to, (&square, &lost)) in to.iter_mut().zip(squares.iter().zip(&*lost)) {
            *to = kernel::with_lost(square, lost);
        }
    }
}
