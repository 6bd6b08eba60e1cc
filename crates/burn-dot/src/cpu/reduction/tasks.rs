//! The loops over groups of rows, compiled for each instruction set.

use super::{
    super::{
        element::Element,
        loops::{self, Pair},
        simd::{self, Isa, Task},
    },
    Normalized,
};

/// Rows of so few elements are summed in f64 at once: chains, and checks of what they lose, take longer than the arithmetic.
const SHORT: usize = 16;

/// Contiguous rows at equal strides.
#[derive(Clone, Copy)]
pub(super) struct StridedRows<T> {
    pub at: *const T,
    pub stride: isize,
}

impl<T> StridedRows<T> {
    #[inline(always)]
    fn row(self, row: usize) -> *const T {
        self.at.wrapping_offset(row as isize * self.stride)
    }

    /// # Safety
    ///
    /// The row has so many elements that can be read, and nobody writes to them.
    #[inline(always)]
    unsafe fn slice<'a>(self, row: usize, len: usize) -> &'a [T] {
        // SAFETY: the caller says that the row can be read.
        unsafe { core::slice::from_raw_parts(self.row(row), len) }
    }
}

/// Sums of each row with its counterpart: `Σ x y`, or, if `N` is 3, `Σ x x`, `Σ x y` and `Σ y y`.
///
/// # Safety
///
/// Both vectors have as many rows as `out`, each of `len` elements that can be read, and nobody writes to them.
pub(super) struct Sums<'a, T, const N: usize> {
    pub vectors: [StridedRows<T>; 2],
    pub len: usize,
    pub out: &'a mut [[f64; N]],
}

impl<T: Element, const N: usize> Task for Sums<'_, T, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let Sums { vectors: [x, y], len, out } = self;
        for (row, out) in out.iter_mut().enumerate() {
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
    gradients: loops::Factors,
    /// What the row adds to the sum for its vector.
    to_sum: f64,
}

impl Factors {
    /// Of a plain product.
    #[inline(always)]
    fn plain(g: f64) -> Self {
        Factors { gradients: loops::Factors { a: g, ..Default::default() }, to_sum: g }
    }

    /// Of a cosine: `a = g / (‖x‖ ‖y‖)`, and the projections. The sum for a vector that is broadcast is divided by its norm in the end.
    #[inline(always)]
    fn normalized(Normalized { scales: [x, y], cosine }: &Normalized, g: f64) -> Self {
        let ((of_x, bound_x), (of_y, bound_y)) = (x.projection(g, *cosine), y.projection(g, *cosine));
        let a = g * x.inverse() * y.inverse();
        Factors { gradients: loops::Factors { a, b: [-of_x, -of_y], bounds: [bound_x, bound_y] }, to_sum: g * y.inverse() }
    }
}

/// The gradients of rows and of their counterparts.
///
/// # Safety
///
/// Both vectors, and the gradients that are wanted, have as many rows as `out_grads`, each of `len` initialized elements. The
/// vectors can be read; the gradients nothing else reads or writes, before this thread's next [`Fence`] if they are streamed. The
/// gradient of a row may be where the row is, and nowhere else among the rows.
pub(super) struct Gradients<'a, T> {
    pub vectors: [StridedRows<T>; 2],
    pub len: usize,
    /// Where they go, if wanted, which may be where the vectors are; the stride is in elements, too.
    pub grads: [Option<(*mut T, isize)>; 2],
    /// The buffer, of some elements, by way of which they are written by non-temporal stores, if they are. A [`Fence`] must
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
        let Gradients { vectors: [x, y], len, grads, mut stream, out_grads, normalized, sum } = self;
        for (row, &g) in out_grads.iter().enumerate() {
            let factors = match normalized {
                Some(normalized) => Factors::normalized(&normalized[row], g),
                None => Factors::plain(g),
            };
            // SAFETY: the task says that they can be read, and written to.
            unsafe {
                let (x, y) = (x.row(row), y.row(row));
                if !sum.is_empty() {
                    loops::axpy(isa, sum, factors.to_sum, core::slice::from_raw_parts(y, len));
                }
                let to = grads.map(
                    #[inline(always)]
                    |grad| match grad {
                        Some((at, stride)) => at.offset(row as isize * stride),
                        None => core::ptr::null_mut(),
                    },
                );
                let of_x = Row { isa, len, vectors: [x, y], factors: factors.gradients, plain: normalized.is_none() };
                match grads {
                    [Some(_), Some(_)] if stream.is_none() => of_x.write_both(to),
                    _ => {
                        if grads[0].is_some() {
                            of_x.write(to[0], stream.as_deref_mut());
                        }
                        if grads[1].is_some() {
                            of_x.swapped().write(to[1], stream.as_deref_mut());
                        }
                    }
                }
            }
        }
    }
}

/// A vector, the other one, and what its gradient is made of.
#[derive(Clone, Copy)]
struct Row<S, T> {
    isa: S,
    len: usize,
    vectors: [*const T; 2],
    factors: loops::Factors,
    plain: bool,
}

impl<S: Isa, T: Element> Row<S, T> {
    /// The other vector as the one.
    #[inline(always)]
    fn swapped(self) -> Self {
        let Row { vectors: [x, y], factors: loops::Factors { a, b: [bx, by], bounds: [x_bound, y_bound] }, .. } = self;
        Row { vectors: [y, x], factors: loops::Factors { a, b: [by, bx], bounds: [y_bound, x_bound] }, ..self }
    }

    /// # Safety
    ///
    /// The vectors have `len` elements that can be read; the gradients as many that are initialized, and that nothing else reads
    /// or writes. A gradient may be where its own vector is.
    #[inline(always)]
    unsafe fn write_both(self, grads: [*mut T; 2]) {
        let pair = Pair { len: self.len, vectors: self.vectors, grads };
        // SAFETY: as this function's own.
        unsafe {
            match self.plain {
                true => loops::gradients::<S, T, true, true>(self.isa, pair, self.factors),
                false => loops::gradients::<S, T, true, false>(self.isa, pair, self.factors),
            }
        }
    }

    /// Writes the gradient of the one: where it belongs, or by way of a buffer that stays in a cache.
    ///
    /// # Safety
    ///
    /// As for [`Row::write_both`]; if it is streamed, nothing else reads or writes the gradient before this thread's next
    /// [`Fence`].
    #[inline(always)]
    unsafe fn write(self, to: *mut T, mut stream: Option<&mut [T]>) {
        let mut done = 0;
        while done < self.len {
            let rest = self.len - done;
            let (target, len) = match &mut stream {
                Some(buffer) => (buffer.as_mut_ptr(), rest.min(buffer.len())),
                None => (to, rest),
            };
            // SAFETY: as this function's own; a chunk is within the row, and fits the buffer.
            unsafe {
                let vectors = [self.vectors[0].add(done), self.vectors[1].add(done)];
                let pair = Pair { len, vectors, grads: [target, core::ptr::null_mut()] };
                match self.plain {
                    true => loops::gradients::<S, T, false, true>(self.isa, pair, self.factors),
                    false => loops::gradients::<S, T, false, false>(self.isa, pair, self.factors),
                }
                if let Some(buffer) = &stream {
                    simd::stream(self.isa, &buffer[..len], to.add(done));
                }
            }
            done += len;
        }
    }
}

/// Orders non-temporal stores before what this thread writes next.
pub(super) struct Fence;

impl Task for Fence {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        isa.fence();
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
