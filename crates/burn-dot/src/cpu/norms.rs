//! Norms of vectors, as the factors `1 / max(‖x‖, floor)`.

use alloc::{vec, vec::Vec};
use core::{
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    kernel::{self, CHUNK, Element, Real, Run},
    level::{self, Level, Task},
    space::{Axes, Axis, NX, NY, Space, X, Y, advance},
    threads::{self, Ptr},
};

/// The factor of a vector, as one number: negative where the norm is below the floor.
#[derive(Clone, Copy)]
pub(super) struct Scale(pub f64);

impl Scale {
    /// From the sum of squares. `None` where the larger of norm and floor is not one of those that are trusted.
    #[inline(always)]
    pub fn new<R: Real>(square: f64, floor: f64, trusted: RangeInclusive<f64>) -> Option<Self> {
        let (norm, floor) = (kernel::sqrt(square), floor.max(R::SMALLEST));
        let divisor = norm.max(floor);
        trusted.contains(&divisor).then(|| Scale(if norm >= floor { 1.0 / divisor } else { -1.0 / divisor }))
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
    let pointers = Ptr((x, norms.as_mut_ptr()));
    threads::for_each_range(outer.len() * blocks, CHUNK.min(inner.size) * space.k.len(), |range| {
        let (x, norms) = pointers.get();
        for task in range {
            let first = task % blocks * CHUNK;
            let at = advance(outer.offset(task / blocks), &inner, first);
            let height = CHUNK.min(inner.size - first);
            let mut squares = [0.0; CHUNK];
            let squares = &mut squares[..height];
            // SAFETY: the caller's promise.
            let x = unsafe { x.offset(at[tensor]) };
            level::vectorized(Squares { x, step: inner.step[tensor], k_outer: &k_outer, k_inner, tensor, squares });
            for (i, square) in squares.iter().enumerate() {
                match Scale::new::<T::Real>(*square, floor, T::Real::MATRIX_NORMS) {
                    // SAFETY: each vector has a number of its own.
                    Some(scale) => unsafe {
                        *norms.offset(at[number] + i as isize * inner.step[number]) = <T::Real>::from_f64(scale.0);
                    },
                    None => trusted.store(false, Ordering::Relaxed),
                }
            }
        }
    });
    trusted.into_inner()
}

/// Adds the squares of vectors that follow each other at equal steps.
struct Squares<'a, T> {
    x: *const T,
    step: isize,
    k_outer: &'a Axes,
    k_inner: Axis,
    tensor: usize,
    squares: &'a mut [f64],
}

impl<T: Element> Task for Squares<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, level: S) {
        let Squares { x, step, k_outer, k_inner, tensor, squares } = self;
        let k_step = k_inner.step[tensor];
        let mut buffer = [T::default(); CHUNK];
        for part in 0..k_outer.len() {
            // SAFETY: the promise made to `of_both`, here and below.
            let x = unsafe { x.offset(k_outer.offset(part)[tensor]) };
            if step == 1 && k_step != 1 {
                for term in 0..k_inner.size {
                    unsafe {
                        let run = Run { at: x.offset(term as isize * k_step), step, len: squares.len() };
                        let run = if let Some(run) = run.as_slice() { run } else { run.gather(&mut buffer) };
                        kernel::accumulate_products(level, squares, run, run);
                    }
                }
                continue;
            }
            for (i, square) in squares.iter_mut().enumerate() {
                for term in (0..k_inner.size).step_by(CHUNK) {
                    let len = CHUNK.min(k_inner.size - term);
                    unsafe {
                        let run = Run { at: x.offset(i as isize * step + term as isize * k_step), step: k_step, len };
                        let run = if let Some(run) = run.as_slice() { run } else { run.gather(&mut buffer) };
                        *square += kernel::dot(level, run, run);
                    }
                }
            }
        }
    }
}
