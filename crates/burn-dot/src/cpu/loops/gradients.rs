//! The gradients of rows: a factor times the other vector, and another times the vector itself.

use core::ops::RangeInclusive;

use super::{
    super::{
        element::{Compute, Element},
        simd::Isa,
    },
    saturate,
};

/// Factors, and terms, with which f32 neither overflows nor loses digits.
const FACTORS: RangeInclusive<f64> = 1e-30..=1e30;

/// What the gradients of a row and of its counterpart are made of: `a` times the other, and `b` times the vector itself where the product is
/// normalized. No term is larger than its bound.
#[derive(Clone, Copy, Default)]
pub(in super::super) struct GradFactors {
    pub a: f64,
    pub b: [f64; 2],
    pub bounds: [f64; 2],
}

impl GradFactors {
    /// Those of the other vector.
    #[inline(always)]
    pub fn swapped(self) -> Self {
        let GradFactors { a, b: [b0, b1], bounds: [bound0, bound1] } = self;
        GradFactors { a, b: [b1, b0], bounds: [bound1, bound0] }
    }
}

/// Two vectors of `len` elements, and where their gradients go, which may be where they are.
#[derive(Clone, Copy)]
pub(in super::super) struct Pair<T> {
    pub len: usize,
    pub vectors: [*const T; 2],
    pub grads: [*mut T; 2],
}

/// Writes `a y + b₀ x` to the first gradient, and, if `BOTH`, `a x + b₁ y` to the second. Without the terms in `b`, if `PLAIN`; else
/// finite.
///
/// # Safety
///
/// The vectors have `len` elements that can be read; the first gradient, or both if `BOTH`, as many that are initialized, and
/// that nothing else reads or writes. A gradient may be where its own vector is.
#[inline(always)]
pub(in super::super) unsafe fn gradients<S: Isa, T: Element, const BOTH: bool, const PLAIN: bool>(
    isa: S,
    pair: Pair<T>,
    factors: GradFactors,
) {
    // A 16-bit float loses no digit in f32, which has the range of the factors most of the time. A vector that does not fill a register of
    // f32 may fill one of f64.
    let in_f32 = if PLAIN { pair.len >= S::F32_LANES } else { !T::IS_COMPUTE && fits_f32(factors) };
    // SAFETY: each vector, and each gradient that is written, has `pair.len` elements. A gradient is where its own vector is, or where
    // nothing else reads or writes.
    unsafe {
        if in_f32 {
            gradients_in::<T::Compute, S, T, BOTH, PLAIN>(isa, pair, factors);
        } else {
            gradients_in::<f64, S, T, BOTH, PLAIN>(isa, pair, factors);
        }
    }
}

/// # Safety
///
/// As for [`gradients`].
#[inline(always)]
unsafe fn gradients_in<A: Compute, S: Isa, T: Element, const BOTH: bool, const PLAIN: bool>(
    isa: S,
    pair: Pair<T>,
    factors: GradFactors,
) {
    let Pair { len, vectors, grads } = pair;
    let lanes = A::lanes::<S>();
    let a = A::splat(isa, A::from_f64(factors.a));
    let b = [A::splat(isa, A::from_f64(factors.b[0])), A::splat(isa, A::from_f64(factors.b[1]))];
    let mut i = 0;
    while i + lanes <= len {
        // SAFETY: a register of each is left. Both are read before a gradient may be written over them.
        unsafe {
            let x = T::load::<A, S>(isa, core::slice::from_raw_parts(vectors[0].add(i), lanes));
            let y = T::load::<A, S>(isa, core::slice::from_raw_parts(vectors[1].add(i), lanes));
            T::store::<A, S>(
                isa,
                gradient::<A, S, T, PLAIN>(isa, a, y, b[0], x),
                core::slice::from_raw_parts_mut(grads[0].add(i), lanes),
            );
            if BOTH {
                T::store::<A, S>(
                    isa,
                    gradient::<A, S, T, PLAIN>(isa, a, x, b[1], y),
                    core::slice::from_raw_parts_mut(grads[1].add(i), lanes),
                );
            }
        }
        i += lanes;
    }
    let gradient = |b: f64, own: f64, other: f64| {
        if PLAIN { T::from_f64(factors.a * other) } else { saturate(factors.a * other + b * own) }
    };
    while i < len {
        // SAFETY: as above.
        unsafe {
            let (x, y) = ((*vectors[0].add(i)).to_f64(), (*vectors[1].add(i)).to_f64());
            *grads[0].add(i) = gradient(factors.b[0], x, y);
            if BOTH {
                *grads[1].add(i) = gradient(factors.b[1], y, x);
            }
        }
        i += 1;
    }
}

/// `a other`, or `a other + b own`, finite.
#[inline(always)]
fn gradient<A: Compute, S: Isa, T: Element, const PLAIN: bool>(
    isa: S,
    a: A::Vector<S>,
    other: A::Vector<S>,
    b: A::Vector<S>,
    own: A::Vector<S>,
) -> A::Vector<S> {
    if PLAIN {
        return A::mul_vectors(isa, a, other);
    }
    let sum = A::mul_add(isa, a, other, A::mul_vectors(isa, b, own));
    if T::IS_COMPUTE { sum } else { A::clamp(isa, sum, A::from_f64(T::SATURATION)) }
}

/// Whether f32 neither overflows nor loses digits with these.
#[inline(always)]
fn fits_f32(GradFactors { a, b, bounds }: GradFactors) -> bool {
    let fits = |x: f64| x == 0.0 || FACTORS.contains(&x.abs());
    fits(a) && fits(b[0]) && fits(b[1]) && fits(bounds[0]) && fits(bounds[1])
}

/// `to = a sum + b x`, finite; without the term in `b`, if there is none.
///
/// # Safety
///
/// `to` has as many elements as `sum`, initialized, which nothing else reads or writes; `x` as many that can be read, if `b` is
/// given. They may be the same.
#[inline(always)]
pub(in super::super) unsafe fn gradient_of_sum<S: Isa, T: Element>(
    isa: S,
    to: *mut T,
    a: f64,
    sum: &[f64],
    b: Option<f64>,
    x: *const T,
) {
    let lanes = S::F64_LANES;
    let (many_a, many_b) = (isa.splat_f64s(a), isa.splat_f64s(b.unwrap_or(0.0)));
    let mut i = 0;
    while i + lanes <= sum.len() {
        // SAFETY: a register of each is left, and is read before it may be written over.
        unsafe {
            let mut gradient = isa.mul_f64s(many_a, isa.load_f64(&sum[i..]));
            if b.is_some() {
                let x = T::load::<f64, S>(isa, core::slice::from_raw_parts(x.add(i), lanes));
                gradient = isa.mul_add_e_f64s(many_b, x, gradient);
                if !T::IS_COMPUTE {
                    gradient = <f64 as Compute>::clamp(isa, gradient, T::SATURATION);
                }
            }
            T::store::<f64, S>(isa, gradient, core::slice::from_raw_parts_mut(to.add(i), lanes));
        }
        i += lanes;
    }
    for (i, &sum) in sum.iter().enumerate().skip(i) {
        // SAFETY: as above.
        unsafe {
            *to.add(i) = match b {
                None => T::from_f64(a * sum),
                Some(b) => saturate(a * sum + b * (*x.add(i)).to_f64()),
            }
        }
    }
}
