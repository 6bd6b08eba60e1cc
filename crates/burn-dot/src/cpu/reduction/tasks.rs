//! The loops over groups of rows, compiled for each instruction set.

use super::{
    super::{
        element::Element,
        loops::{self, Pair},
        simd::{Isa, Task},
        streaming,
    },
    Normalized,
};

/// Rows of so few elements are summed in f64 at once: chains, and checks of what they lose, take longer than the arithmetic.
const SHORT: usize = 16;

/// Contiguous rows at equal strides.
#[derive(Clone, Copy)]
pub(super) struct StridedRows<T> {
    pub at: *const T,
    /// 0 for a row that is reused, or is alone: nothing is prefetched then.
    pub stride: isize,
}

impl<T> StridedRows<T> {
    #[inline(always)]
    fn row(self, row: usize) -> *const T {
        self.at.wrapping_offset(row as isize * self.stride)
    }

    /// Asks for what is read some rows later.
    #[inline(always)]
    fn prefetch<S: Isa>(self, isa: S, row: usize) {
        if self.stride != 0 {
            loops::prefetch(isa, self.row(row));
        }
    }

    /// # Safety
    ///
    /// The row has so many elements that can be read, and nobody writes to them.
    #[inline(always)]
    unsafe fn slice<'a>(self, row: usize, len: usize) -> &'a [T] {
        // SAFETY: the row has `len` contiguous elements from here on, and they are only read.
        unsafe { core::slice::from_raw_parts(self.row(row), len) }
    }
}

/// Sums of each row with its counterpart: `Σ x y`, or, if `N` is 3, `Σ x x`, `Σ x y` and `Σ y y`.
///
/// # Safety
///
/// Both vectors have as many rows as `out`, each of `len` elements that can be read, and nobody writes to them.
pub(super) struct SumRows<'a, T, const N: usize> {
    pub vectors: [StridedRows<T>; 2],
    pub len: usize,
    pub out: &'a mut [[f64; N]],
}

impl<T: Element, const N: usize> Task for SumRows<'_, T, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let SumRows { vectors: [x, y], len, out } = self;
        for (row, out) in out.iter_mut().enumerate() {
            x.prefetch(isa, row);
            y.prefetch(isa, row);
            // SAFETY: the task says that they can be read.
            let (x, y) = unsafe { (x.slice(row, len), y.slice(row, len)) };
            if len <= SHORT {
                *out = loops::short_sums(isa, x, y);
            } else if N == 3 {
                out.copy_from_slice(&loops::dot_and_squares(isa, x, y));
            } else {
                out[0] = loops::dot(isa, x, y);
            }
        }
    }
}

/// What the gradients of a row and of its counterpart are made of.
#[derive(Clone, Copy, Default)]
struct Factors {
    gradients: loops::GradFactors,
    /// What the row adds to the sum for its vector.
    to_sum: f64,
}

impl Factors {
    /// Of a plain product.
    #[inline(always)]
    fn plain(g: f64) -> Self {
        Factors { gradients: loops::GradFactors { a: g, ..Default::default() }, to_sum: g }
    }

    /// Of a cosine: `a = g / (‖x‖ ‖y‖)`, and the projections. The sum for a vector that is broadcast is divided by its norm in the end.
    #[inline(always)]
    fn normalized(Normalized { scales: [x, y], cosine }: &Normalized, g: f64) -> Self {
        let ((of_x, bound_x), (of_y, bound_y)) = (x.projection(g, *cosine), y.projection(g, *cosine));
        let a = g * x.inverse() * y.inverse();
        Factors { gradients: loops::GradFactors { a, b: [-of_x, -of_y], bounds: [bound_x, bound_y] }, to_sum: g * y.inverse() }
    }
}

/// The gradients of rows and of their counterparts.
///
/// # Safety
///
/// Both vectors, and the gradients that are wanted, have as many rows as `out_grads`, each of `len` initialized elements. The
/// vectors can be read; the gradients nothing else reads or writes, before this thread's next [`streaming::fence`] if they are streamed. The
/// gradient of a row may be where the row is, and nowhere else among the rows; those of both vectors are so only where nothing is streamed
/// and there is no sum.
pub(super) struct Gradients<'a, T> {
    pub vectors: [StridedRows<T>; 2],
    pub len: usize,
    /// Where they go, if wanted, which may be where the vectors are; the stride is in elements, too.
    pub grads: [Option<(*mut T, isize)>; 2],
    /// The buffer, of some elements, by way of which they are written by non-temporal stores, if they are. A [`streaming::fence`] must
    /// follow.
    pub stream: Option<&'a mut [T]>,
    /// The gradient of the output of each row.
    pub out_grads: &'a [f64],
    /// Each row, where the product is normalized.
    pub normalized: Option<&'a [Normalized]>,
    /// What the rows add up to, if it is wanted.
    pub sum: &'a mut [f64],
}

impl<T: Element> Task for Gradients<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let both = self.grads.iter().all(Option::is_some) && self.stream.is_none() && self.sum.is_empty();
        // A loop for each: one for all would carry along what all of them need, on the stack.
        // SAFETY: as the task's own. Gradients in place are not streamed, and where there is a sum only that of the counterpart is written: two
        // of them go to `both`.
        unsafe {
            match (both, self.normalized) {
                (true, None) => self.both::<S, true>(isa),
                (true, Some(_)) => self.both::<S, false>(isa),
                (false, None) => self.each::<S, true>(isa),
                (false, Some(_)) => self.each::<S, false>(isa),
            }
        }
    }
}

impl<T: Element> Gradients<'_, T> {
    #[inline(always)]
    fn factors<const PLAIN: bool>(&self, row: usize, g: f64) -> Factors {
        match self.normalized {
            Some(normalized) if !PLAIN => Factors::normalized(&normalized[row], g),
            _ => Factors::plain(g),
        }
    }

    /// Both gradients of each row, where they belong.
    ///
    /// # Safety
    ///
    /// As the task's; both gradients are wanted, and none is streamed.
    #[inline(always)]
    unsafe fn both<S: Isa, const PLAIN: bool>(self, isa: S) {
        let ([x, y], [Some((dx, dx_stride)), Some((dy, dy_stride))]) = (self.vectors, self.grads) else { return };
        for (row, &g) in self.out_grads.iter().enumerate() {
            let factors = self.factors::<PLAIN>(row, g).gradients;
            x.prefetch(isa, row);
            y.prefetch(isa, row);
            // SAFETY: there are as many rows as `out_grads`, each of `len` elements in both vectors and both gradients. A gradient is where
            // its own row is, or where nothing else reads or writes.
            unsafe {
                let grads = [dx.offset(row as isize * dx_stride), dy.offset(row as isize * dy_stride)];
                let pair = Pair { len: self.len, vectors: [x.row(row), y.row(row)], grads };
                loops::gradients::<S, T, true, PLAIN>(isa, pair, factors);
            }
        }
    }

    /// One gradient of each row after the other, and the sum.
    ///
    /// # Safety
    ///
    /// As the task's; not both gradients in the place of their vectors, as the first would overwrite what the second reads.
    #[inline(always)]
    unsafe fn each<S: Isa, const PLAIN: bool>(mut self, isa: S) {
        let ([x, y], len) = (self.vectors, self.len);
        for (row, &g) in self.out_grads.iter().enumerate() {
            let Factors { gradients: factors, to_sum } = self.factors::<PLAIN>(row, g);
            x.prefetch(isa, row);
            y.prefetch(isa, row);
            let (x, y) = (x.row(row), y.row(row));
            // SAFETY: there are as many rows as `out_grads`, each of `len` elements in both vectors and the wanted gradients, which nothing
            // else reads or writes. What a gradient in place overwrites was read before: at most one is in place.
            unsafe {
                if !self.sum.is_empty() {
                    loops::axpy(isa, self.sum, to_sum, core::slice::from_raw_parts(y, len));
                }
                let stream = &mut self.stream;
                if let Some((dx, stride)) = self.grads[0] {
                    write::<S, T, PLAIN>(isa, len, [x, y], factors, dx.offset(row as isize * stride), stream.as_deref_mut());
                }
                if let Some((dy, stride)) = self.grads[1] {
                    let to = dy.offset(row as isize * stride);
                    write::<S, T, PLAIN>(isa, len, [y, x], factors.swapped(), to, stream.as_deref_mut());
                }
            }
        }
    }
}

/// Writes the gradient of the first vector: where it belongs, or by way of a buffer that stays in a cache.
///
/// # Safety
///
/// The vectors have `len` elements that can be read; the gradient as many that are initialized, and that nothing else reads or writes, before
/// this thread's next [`streaming::fence`] if it is streamed. It may be where its own vector is.
#[inline(always)]
unsafe fn write<S: Isa, T: Element, const PLAIN: bool>(
    isa: S,
    len: usize,
    vectors: [*const T; 2],
    factors: loops::GradFactors,
    to: *mut T,
    mut stream: Option<&mut [T]>,
) {
    let mut done = 0;
    while done < len {
        let (target, part) = match &mut stream {
            Some(buffer) => (buffer.as_mut_ptr(), (len - done).min(buffer.len())),
            None => (to, len),
        };
        // SAFETY: `done + part` is `len` at most, so the part is within the vectors and the gradient, which is ours alone. `target` has
        // `part` elements: it is the buffer, which is as long at least, or the whole gradient.
        unsafe {
            let vectors = [vectors[0].add(done), vectors[1].add(done)];
            let pair = Pair { len: part, vectors, grads: [target, core::ptr::null_mut()] };
            loops::gradients::<S, T, false, PLAIN>(isa, pair, factors);
            if let Some(buffer) = &stream {
                streaming::stream(isa, &buffer[..part], to.add(done));
            }
        }
        done += part;
    }
}

/// `to = a sum + b x`: the gradient of a vector from what its rows gave.
///
/// # Safety
///
/// As for [`loops::gradient_of_sum`].
pub(super) struct GradientOfSum<'a, T> {
    pub to: *mut T,
    pub a: f64,
    pub sum: &'a [f64],
    pub b: Option<f64>,
    pub x: *const T,
}

impl<T: Element> Task for GradientOfSum<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let GradientOfSum { to, a, sum, b, x } = self;
        // SAFETY: what the task says of `to` and `x` is what the loop asks.
        unsafe { loops::gradient_of_sum(isa, to, a, sum, b, x) };
    }
}
