//! Tensors as memory: where elements are read, and the buffers that results are written to. The types say who may read and write what.

use alloc::vec::Vec;
use core::marker::PhantomData;

use burn_core::backend::{
    TensorMetadata,
    flex::{FlexTensor, Layout},
};

use super::{Stored, pool::Loan, streaming::STREAM_FROM};

/// The first element of a tensor that is not empty, all of whose elements are within its memory.
///
/// # Panics
///
/// If an element is outside of the memory, as flex itself would when it came to read it; or if the dtype is another.
pub(super) fn base_ptr<T: Stored>(x: &FlexTensor) -> *const T {
    let (layout, storage) = (x.layout(), x.storage::<T>());
    let (mut least, mut most) = (layout.start_offset() as isize, layout.start_offset() as isize);
    for (&size, &stride) in layout.shape().iter().zip(layout.strides()) {
        let reach = (size as isize - 1).saturating_mul(stride);
        least = least.saturating_add(reach.min(0));
        most = most.saturating_add(reach.max(0));
    }
    assert!(
        least >= 0 && (most as usize) < storage.len(),
        "a tensor of {} elements whose layout reaches from {least} to {most}: {layout:?}",
        storage.len()
    );
    // From the first element, not from a slice: strides may be negative.
    storage.as_ptr().wrapping_add(layout.start_offset())
}

/// How many elements a shape has.
///
/// # Panics
///
/// If there are more than an address space holds: a wrapped count would allocate too little.
fn count(shape: &[usize]) -> usize {
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    count.expect("the plan refuses tensors with more elements than an address space holds")
}

/// Memory of its own for a tensor. Its elements are initialized, to values that mean nothing until a kernel has written them.
pub(super) struct Fresh<T> {
    memory: Loan,
    layout: Layout,
    dtype: PhantomData<T>,
}

impl<T: Stored> Fresh<T> {
    /// For all elements of a layout without gaps. A `Vec` is made of it without a copy.
    pub fn new(layout: Layout) -> Self {
        Fresh { memory: Loan::new::<T>(count(layout.shape())), layout, dtype: PhantomData }
    }

    /// [`Fresh::new`] for a product of matrices: one that may be streamed begins a cache line, and a `Vec` of it is a copy.
    pub fn product(layout: Layout) -> Self {
        let streams = T::IS_COMPUTE && count(layout.shape()).saturating_mul(size_of::<T>()) >= STREAM_FROM;
        if streams { Fresh::gradient(layout) } else { Fresh::new(layout) }
    }

    /// [`Fresh::new`] for a gradient, which begins a cache line.
    pub fn gradient(layout: Layout) -> Self {
        Fresh { memory: Loan::on_line::<T>(count(layout.shape())), layout, dtype: PhantomData }
    }

    pub fn strides(&self) -> &[isize] {
        self.layout.strides()
    }

    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.memory.as_mut_ptr().cast()
    }

    pub fn into_tensor(self) -> FlexTensor {
        FlexTensor::new(self.memory.into_bytes(), self.layout, T::dtype())
    }
}

/// An input whose memory becomes that of its gradient. It owns the tensor, so that nobody reads it by a reference meanwhile.
pub(super) struct InPlace<T> {
    tensor: FlexTensor,
    at: *mut T,
}

impl<T: Stored> InPlace<T> {
    /// If nobody else holds the tensor and all of its memory is its own, each element once.
    fn new(mut tensor: FlexTensor) -> Result<Self, FlexTensor> {
        let layout = tensor.layout();
        let whole = layout.start_offset() == 0 && is_dense(layout);
        let elements = layout.num_elements();
        match tensor.try_storage_mut::<T>() {
            // A product of sizes that wraps is not taken for the length: the elements of a dense layout are in memory.
            Some(storage) if whole && storage.len() == elements => {
                let at = storage.as_mut_ptr();
                Ok(InPlace { tensor, at })
            }
            _ => Err(tensor),
        }
    }
}

/// An input of the backward pass, and where its gradient goes.
pub(super) enum Differentiated<T> {
    Unwanted(FlexTensor),
    Apart(FlexTensor, Fresh<T>),
    InPlace(InPlace<T>),
}

impl<T: Stored> Differentiated<T> {
    pub fn new(x: FlexTensor, wanted: bool, may_overwrite: bool) -> Self {
        if !wanted {
            return Differentiated::Unwanted(x);
        }
        let in_place = if may_overwrite { InPlace::new(x) } else { Err(x) };
        in_place.map_or_else(
            |x| {
                let gradient = Fresh::gradient(layout_of_gradient(&x));
                Differentiated::Apart(x, gradient)
            },
            Differentiated::InPlace,
        )
    }

    /// The first element of the input, to be read.
    ///
    /// # Panics
    ///
    /// As [`base_ptr`].
    pub fn input(&self) -> *const T {
        match self {
            Differentiated::Unwanted(x) | Differentiated::Apart(x, _) => base_ptr(x),
            Differentiated::InPlace(x) => x.at,
        }
    }

    /// The first element of the gradient, to be written.
    pub fn gradient(&mut self) -> Option<*mut T> {
        match self {
            Differentiated::Unwanted(_) => None,
            Differentiated::Apart(_, gradient) => Some(gradient.as_mut_ptr()),
            Differentiated::InPlace(x) => Some(x.at),
        }
    }

    /// The strides of the input, and those of its gradient.
    pub fn strides(&self) -> (&[isize], &[isize]) {
        match self {
            Differentiated::Unwanted(x) => (x.layout().strides(), &[]),
            Differentiated::Apart(x, gradient) => (x.layout().strides(), gradient.strides()),
            Differentiated::InPlace(x) => (x.tensor.layout().strides(), x.tensor.layout().strides()),
        }
    }

    pub fn is_in_place(&self) -> bool {
        matches!(self, Differentiated::InPlace(_))
    }

    pub fn into_gradient(self) -> Option<FlexTensor> {
        match self {
            Differentiated::Unwanted(_) => None,
            Differentiated::Apart(_, gradient) => Some(gradient.into_tensor()),
            Differentiated::InPlace(x) => Some(x.tensor),
        }
    }

    /// The input, where the kernels have refused.
    pub fn into_input(self) -> FlexTensor {
        match self {
            Differentiated::Unwanted(x) | Differentiated::Apart(x, _) => x,
            Differentiated::InPlace(_) => unreachable!("kernels that may refuse do not overwrite their inputs"),
        }
    }
}

/// A gradient is laid out as its input is, so that both are read and written in one order; unless the input has gaps or repetitions.
fn layout_of_gradient(x: &FlexTensor) -> Layout {
    let layout = x.layout();
    if is_dense(layout) {
        Layout::new(layout.shape().clone(), layout.strides().to_vec(), 0)
    } else {
        Layout::contiguous(x.shape())
    }
}

/// Whether the elements fill a stretch of memory, each once.
fn is_dense(layout: &Layout) -> bool {
    let mut axes: Vec<_> =
        layout.strides().iter().copied().zip(layout.shape().iter().copied()).filter(|axis| axis.1 > 1).collect();
    axes.sort_unstable();
    let mut next = 1;
    axes.iter().all(|&(stride, size)| core::mem::replace(&mut next, stride.saturating_mul(size as isize)) == stride)
}
