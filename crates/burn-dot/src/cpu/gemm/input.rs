//! Inputs: where their elements are, and how they are read in the compute dtype.

use alloc::vec::Vec;
use core::{any::TypeId, ops::Range};

use burn_core::tensor::bf16;

use super::super::{
    element::{Compute, Element},
    layout::{Axes, Axis, Offsets, sum},
    loops,
    simd::{self, Isa, Task},
};
use super::pairs::LoadPairs;

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
    pub is_bf16: bool,
    /// Where elements are read in pairs, how far the second of a pair is from the first.
    pair_stride: Option<isize>,
}

// SAFETY: an input is only read, and its elements, plain data, may be read on any thread. Dereferencing it needs a safety
// argument of its own.
unsafe impl<R> Send for Input<R> {}
// SAFETY: as above.
unsafe impl<R> Sync for Input<R> {}

/// Copies `outer.0` segments of `inner.0` elements, at these strides, in the compute dtype, each contiguous and `to_stride` after the last.
///
/// # Safety
///
/// The elements are within one allocation, and can be read. `to` has elements for all segments, which are initialized, and which
/// nothing else reads or writes.
pub(super) type Load<R> =
    unsafe fn(from: *const u8, outer: (usize, isize), inner: (usize, isize), to: *mut R, to_stride: usize);

impl<R: Compute> Input<R> {
    pub fn new<T: Element<Compute = R>>(at: *const T, tensor: usize) -> Self {
        let is_bf16 = TypeId::of::<T>() == TypeId::of::<bf16>();
        Input {
            at: at.cast(),
            size: size_of::<T>(),
            tensor,
            load: load::<T>,
            is_compute: T::IS_COMPUTE,
            is_bf16,
            pair_stride: None,
        }
    }

    /// Read in pairs along an axis of K. Only of bf16.
    pub fn in_pairs(self, along: &Axis) -> Self {
        assert!(self.is_bf16, "only bf16 is read in pairs");
        Input { pair_stride: Some(self.stride(along)), ..self }
    }

    pub fn is_in_pairs(self) -> bool {
        self.pair_stride.is_some()
    }

    /// Whether elements are contiguous along an axis of K.
    pub fn is_contiguous(self, k: &Axis) -> bool {
        self.pair_stride.unwrap_or(self.stride(k)) == 1
    }

    /// Whether elements, or pairs, are multiplied as they are in memory.
    pub fn is_as_multiplied(self) -> bool {
        self.is_compute || self.pair_stride == Some(1)
    }

    /// These strides in elements of the compute dtype, or in contiguous pairs, of an input that [`Input::is_as_multiplied`].
    pub fn strides_in_place(self, stride: isize, k_stride: isize) -> Option<(isize, isize)> {
        match self.pair_stride {
            None => Some((stride, k_stride)),
            // Strides of whole pairs: with a K of several axes, another one than that of the pairs may be the last.
            Some(_) => (stride % 2 == 0 && k_stride % 2 == 0).then_some((stride / 2, k_stride / 2)),
        }
    }

    pub fn offset(self, at: Offsets) -> *const u8 {
        self.element(at[self.tensor])
    }

    /// The element so far from the first.
    pub fn element(self, at: isize) -> *const u8 {
        self.at.wrapping_offset(at * self.size as isize)
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
        // SAFETY: `new` took `load` for the dtype of the elements; what it reads and writes is within memory, as `Load` asks. The second
        // element of a pair is at the next index of K, and so within the input, too.
        unsafe {
            match self.pair_stride {
                None => (self.load)(from, outer, inner, to, to_stride),
                Some(pair_stride) => {
                    simd::dispatch(LoadPairs { from: from.cast(), pair_stride, outer, inner, to: to.cast(), to_stride });
                }
            }
        }
    }
}

/// # Safety
///
/// As for [`Load`]; the elements are of this dtype.
unsafe fn load<T: Element>(
    from: *const u8,
    outer: (usize, isize),
    inner: (usize, isize),
    to: *mut T::Compute,
    to_stride: usize,
) {
    // SAFETY: the elements are of dtype `T`, as `Input::new::<T>` alone takes this function; the task asks for no more than `Load`.
    unsafe { simd::dispatch(LoadStrided::<T> { from: from.cast(), outer, inner, to, to_stride }) };
}

/// See [`Load`].
///
/// # Safety
///
/// As there.
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
    unsafe fn run<S: Isa>(self, isa: S) {
        let LoadStrided { from, outer, inner: (len, stride), to, to_stride } = self;
        for i in 0..outer.0 {
            // SAFETY: the task says that a segment can be read, and `to` written.
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

/// One side of a product: the vectors of an input, by its free axes and those of K.
#[derive(Clone, Copy)]
pub(super) struct Side<'a, R> {
    pub free: &'a Axes,
    pub k: &'a Axes,
    pub input: Input<R>,
    /// A factor for each index of K, and its place in [`Offsets`]. Only its magnitude counts: see
    /// [`Scale`](super::super::norms::Scale).
    pub factors: Option<(&'a [R], usize)>,
}

/// Where the vectors of a block are: segments along the last of their axes.
#[derive(Default)]
pub(super) struct Places {
    /// The first vector of each segment, and where it is.
    segments: Vec<(usize, Offsets)>,
    stride: Offsets,
    len: usize,
}

impl Places {
    pub fn set(&mut self, axes: &Axes, batch_at: Offsets, vectors: Range<usize>) {
        self.len = vectors.len();
        self.stride = axes.inner_stride();
        self.segments.clear();
        self.segments.extend(axes.segments(vectors).map(|(first, _, from)| (first, sum(batch_at, from))));
    }

    pub fn len(&self) -> usize {
        self.len
    }

    fn segment(&self, vector: usize) -> (isize, &Offsets) {
        let segment = match self.segments.len() {
            1 => 0,
            _ => self.segments.partition_point(|&(first, _)| first <= vector) - 1,
        };
        let (first, at) = &self.segments[segment];
        ((vector - first) as isize, at)
    }

    pub fn at(&self, vector: usize) -> Offsets {
        let (within, at) = self.segment(vector);
        core::array::from_fn(|tensor| at[tensor] + within * self.stride[tensor])
    }

    /// Where a vector is in one tensor.
    pub fn offset(&self, vector: usize, tensor: usize) -> isize {
        let (within, at) = self.segment(vector);
        at[tensor] + within * self.stride[tensor]
    }

    /// The stride from each of these vectors to the next in one tensor, if they have one; 1 for a single vector.
    pub fn stride(&self, vectors: Range<usize>, tensor: usize) -> Option<isize> {
        if vectors.len() == 1 {
            return Some(1);
        }
        if self.segments.len() == 1 {
            return Some(self.stride[tensor]);
        }
        let first = self.offset(vectors.start, tensor);
        let stride = self.offset(vectors.start + 1, tensor) - first;
        let regular = vectors.clone().all(|v| self.offset(v, tensor) - first == (v - vectors.start) as isize * stride);
        regular.then_some(stride)
    }

    /// Segments of these vectors: the first, counted from theirs, how many there are, and where it is in one tensor.
    pub fn segments(&self, vectors: Range<usize>, tensor: usize) -> impl Iterator<Item = (usize, usize, isize)> {
        let ends = self.segments.iter().skip(1).map(|&(first, _)| first).chain([self.len]);
        let stride = self.stride[tensor];
        self.segments.iter().zip(ends).filter_map(move |(&(start, at), end)| {
            let (first, end) = (start.max(vectors.start), end.min(vectors.end));
            (first < end).then(|| (first - vectors.start, end - first, at[tensor] + (first - start) as isize * stride))
        })
    }

    /// Where the vectors are in one tensor, segment by segment.
    pub fn indices(&self, tensor: usize) -> impl Iterator<Item = impl Iterator<Item = isize>> {
        let stride = self.stride[tensor];
        self.segments(0..self.len, tensor).map(move |(_, len, at)| (0..len as isize).map(move |i| at + i * stride))
    }
}

/// One block of K, and where its elements are.
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

    pub fn set(&mut self, side: &Side<'_, R>, at: Offsets, k_range: Range<usize>) {
        self.len = k_range.len();
        self.segments.clear();
        self.segments.extend(self.axes.segments(k_range));
        if let Some((factors, index)) = side.factors {
            self.factors.clear();
            for &(_, len, from) in &self.segments {
                let first = at[index] + from[index];
                self.factors.extend((0..len).map(|i| factors[(first + i as isize * self.last.stride[index]) as usize].abs()));
            }
        }
        // Segments that have one stride in this input are one.
        if self.segments.len() > 1 && self.axes.stride_of(side.input.tensor).is_some() {
            self.segments.truncate(1);
            self.segments[0].1 = self.len;
        }
    }

    /// The offset of the first index, if an input has one stride along all of them.
    pub fn single(&self) -> Option<Offsets> {
        match self.segments[..] {
            [(_, _, from)] => Some(from),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::layout::{Axis, X, Y},
        *,
    };

    #[test]
    fn a_block_of_k_along_which_an_input_has_one_stride_is_one_segment_of_it() {
        let axis = |size, x, y| {
            let mut stride = Offsets::default();
            (stride[X], stride[Y]) = (x, y);
            Axis { size, stride }
        };
        // Along both axes `x` is contiguous; between the rows of `y` lies something else.
        let axes = Axes::new([axis(12, 20, 480), axis(20, 1, 1)]);
        let free = Axes::new([]);
        let elements = [0f32; 1];
        for (tensor, segments) in [(X, 1), (Y, 4)] {
            let input = Input::new(elements.as_ptr(), tensor);
            let mut block = KBlock::new(&axes);
            block.set(&Side { free: &free, k: &axes, input, factors: None }, Offsets::default(), 30..95);
            assert_eq!((block.len, block.segments.len()), (65, segments));
            assert_eq!(block.segments.iter().map(|segment| segment.1).sum::<usize>(), 65);
            assert_eq!(block.segments[0].2[tensor], if tensor == X { 30 } else { 490 });
        }
    }
}
