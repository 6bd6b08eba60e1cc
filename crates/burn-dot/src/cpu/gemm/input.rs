//! Inputs: where their elements are, and how they are read in the compute dtype.

use alloc::vec::Vec;
use core::ops::Range;

use super::super::{
    element::{Compute, Element},
    layout::{Axes, Axis, Offsets},
    loops,
    simd::{self, Isa, Task},
};

/// One input of a product: where its elements are, and how they are read in the compute dtype `R`.
#[derive(Clone, Copy)]
pub(in super::super) struct Input<R> {
    at: *const u8,
    /// Bytes of an element.
    size: usize,
    /// Its place in [`Offsets`].
    pub tensor: usize,
    load: Load<R>,
    /// Whether its elements are of the compute dtype.
    pub is_compute: bool,
    /// Whether they are bf16.
    pub is_bf16: bool,
}

// SAFETY: an input is only read, and its elements, plain data, may be read on any thread. To read at all takes a reason of its own.
unsafe impl<R> Send for Input<R> {}
// SAFETY: as above.
unsafe impl<R> Sync for Input<R> {}

/// Copies `outer.0` segments of `inner.0` elements, at these strides, in the compute dtype, each contiguous and `to_stride` after the last.
///
/// # Safety
///
/// The elements are within one allocation; `to` has room for them.
type Load<R> = unsafe fn(from: *const u8, outer: (usize, isize), inner: (usize, isize), to: *mut R, to_stride: usize);

impl<R: Compute> Input<R> {
    pub fn new<T: Element<Compute = R>>(at: *const T, tensor: usize) -> Self {
        use core::any::TypeId;
        Input {
            at: at.cast(),
            size: size_of::<T>(),
            tensor,
            load: load::<T>,
            is_compute: T::IS_COMPUTE,
            is_bf16: TypeId::of::<T>() == TypeId::of::<burn_core::tensor::bf16>(),
        }
    }

    pub fn offset(self, at: Offsets) -> *const u8 {
        self.at.wrapping_offset(at[self.tensor] * self.size as isize)
    }

    pub fn stride(self, axis: &Axis) -> isize {
        axis.stride[self.tensor]
    }

    /// See [`Load`].
    ///
    /// # Safety
    ///
    /// As there.
    pub unsafe fn load(self, from: *const u8, outer: (usize, isize), inner: (usize, isize), to: *mut R, to_stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { (self.load)(from, outer, inner, to, to_stride) }
    }
}

unsafe fn load<T: Element>(
    from: *const u8,
    outer: (usize, isize),
    inner: (usize, isize),
    to: *mut T::Compute,
    to_stride: usize,
) {
    simd::dispatch(LoadStrided::<T> { from: from.cast(), outer, inner, to, to_stride });
}

struct LoadStrided<T: Element> {
    from: *const T,
    outer: (usize, isize),
    inner: (usize, isize),
    to: *mut T::Compute,
    to_stride: usize,
}

impl<T: Element> Task for LoadStrided<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let LoadStrided { from, outer, inner: (len, stride), to, to_stride } = self;
        for i in 0..outer.0 {
            // SAFETY: the promise made to `Load`.
            unsafe {
                let from = from.offset(i as isize * outer.1);
                let to = core::slice::from_raw_parts_mut(to.add(i * to_stride), len);
                if stride == 1 {
                    loops::to_compute(isa, core::slice::from_raw_parts(from, len), to);
                } else {
                    for (j, to) in to.iter_mut().enumerate() {
                        *to = <T::Compute>::from_f64((*from.offset(j as isize * stride)).to_f64());
                    }
                }
            }
        }
    }
}

/// One side of a product: the vectors of an input, along its free axes, and their terms.
#[derive(Clone, Copy)]
pub(super) struct Side<'a, R> {
    pub free: &'a Axes,
    pub terms: &'a Axes,
    pub input: Input<R>,
    /// A factor for each term, and its place in [`Offsets`]. Only its magnitude counts: see [`Scale`](super::super::norms::Scale).
    pub factors: Option<(&'a [R], usize)>,
}

/// The terms of one block of K, and where they are.
pub(super) struct KBlock<'a, R> {
    pub len: usize,
    /// The first of each segment along the last axis, its length, and where it is.
    pub segments: Vec<(usize, usize, Offsets)>,
    pub last: Axis,
    pub factors: Vec<R>,
    axes: &'a Axes,
}

impl<'a, R: Compute> KBlock<'a, R> {
    pub fn new(axes: &'a Axes) -> Self {
        KBlock { len: 0, segments: Vec::new(), last: axes.inner().1, factors: Vec::new(), axes }
    }

    pub fn set(&mut self, side: &Side<'_, R>, at: Offsets, terms: Range<usize>) {
        self.len = terms.len();
        self.segments.clear();
        self.segments.extend(self.axes.segments(terms));
        let Some((factors, index)) = side.factors else { return };
        self.factors.clear();
        for &(_, len, from) in &self.segments {
            let first = at[index] + from[index];
            self.factors.extend((0..len).map(|i| factors[(first + i as isize * self.last.stride[index]) as usize].abs()));
        }
    }

    /// Whether the terms of an input have one stride.
    pub fn single(&self) -> Option<Offsets> {
        match self.segments[..] {
            [(_, _, from)] => Some(from),
            _ => None,
        }
    }
}
