//! Norms of vectors, as the factors `1 / max(‖x‖, floor)`.

use alloc::{vec, vec::Vec};
use core::{
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    kernel::{self, Element, LINES, Real},
    level::{self, Level, Task},
    runs::{CHUNK, Run},
    space::{Axes, Axis, NX, NY, Space, X, Y, advance},
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
    let (k_outer, k_inner) = space.k.inner();
    let blocks = inner.size.div_ceil(CHUNK);
    let trusted = AtomicBool::new(true);
    let (x, norms) = (SharedPtr::new(x), SharedPtr::new(norms.as_mut_ptr()));
    threads::for_each_range(outer.len() * blocks, CHUNK.min(inner.size) * space.k.len(), |range| {
        let (x, norms) = (x.get(), norms.get());
        for task in range {
            let first = task % blocks * CHUNK;
            let at = advance(outer.offset(task / blocks), &inner, first);
            let vectors = CHUNK.min(inner.size - first);
            assert!(vectors == 1 || inner.step[number] == 1, "vectors are numbered along the last axis");
            // SAFETY: the caller's promise; each vector has a number of its own.
            let (x, to) = unsafe { (x.offset(at[tensor]), core::slice::from_raw_parts_mut(norms.offset(at[number]), vectors)) };
            let (step, k_outer) = (inner.step[tensor], &k_outer);
            if !level::vectorized(Norms { x, step, k_outer, k_inner, tensor, to, floor }) {
                trusted.store(false, Ordering::Relaxed);
            }
        }
    });
    trusted.into_inner()
}

/// The norms of vectors that follow each other at equal steps. False as [`of_both`].
struct Norms<'a, T: Element> {
    x: *const T,
    step: isize,
    k_outer: &'a Axes,
    k_inner: Axis,
    tensor: usize,
    to: &'a mut [T::Real],
    floor: f64,
}

impl<T: Element> Task for Norms<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Level>(self, level: S) -> bool {
        let Norms { x, step, k_outer, k_inner, tensor, to, floor } = self;
        let k_step = k_inner.step[tensor];
        let mut squares = [0.0; CHUNK];
        let squares = &mut squares[..to.len()];
        let mut buffer = [T::default(); CHUNK];
        for part in 0..k_outer.len() {
            // SAFETY: the promise made to `of_both`, here and below.
            let x = unsafe { x.offset(k_outer.offset(part)[tensor]) };
            if step == 1 && k_step != 1 {
                for term in (0..k_inner.size).step_by(LINES) {
                    let mut lines: [&[T]; LINES] = [&[]; LINES];
                    let lines = &mut lines[..LINES.min(k_inner.size - term)];
                    for (i, line) in lines.iter_mut().enumerate() {
                        *line = unsafe { core::slice::from_raw_parts(x.offset((term + i) as isize * k_step), squares.len()) };
                    }
                    T::add_squares(level, squares, lines);
                }
                continue;
            }
            for (i, square) in squares.iter_mut().enumerate() {
                for term in (0..k_inner.size).step_by(CHUNK) {
                    let len = CHUNK.min(k_inner.size - term);
                    // A square that f32 does not hold is nothing beside those of a norm that is trusted, or infinite.
                    unsafe {
                        let run = Run { at: x.offset(i as isize * step + term as isize * k_step), step: k_step, len };
                        let run = if let Some(run) = run.as_slice() { run } else { run.gather(&mut buffer) };
                        *square += T::dot(level, run, run);
                    }
                }
            }
        }
        let mut trusted = true;
        for (to, &square) in to.iter_mut().zip(&*squares) {
            let scale = Scale::new::<T::Real>(square, floor);
            trusted &= scale.is_within(T::Real::MATRIX_NORMS);
            *to = <T::Real>::from_f64(scale.0);
        }
        trusted
    }
}
