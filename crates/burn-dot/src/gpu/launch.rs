//! How kernels are launched: tensors as strided views, vector widths, grids, and which units share a row.

use core::sync::atomic::{AtomicU8, Ordering};

use burn_core::backend::TensorMetadata;
use burn_core::backend::cubecl::dtype_to_storage_type;
use burn_core::tensor::{DType, FloatDType, Shape};
use burn_cubecl::{cubecl, kernel::untile, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use burn_std::tensor::contiguous_strides;
use cubecl::{
    client::Client,
    features::Plane,
    ir::ElemType,
    prelude::*,
    server::CubeCountSelection,
    zspace::{Strides, Tiling},
};
use smallvec::{SmallVec, smallvec};

use super::kernels::{self, Reduction};
use crate::{
    layout::{Axes, Axis},
    plan::{FloatOptions, Plan},
};

/// Dtypes of a product.
#[derive(Clone, Copy)]
pub(super) struct DTypes {
    pub input: FloatDType,
    pub output: FloatDType,
    pub accumulator: FloatDType,
}

impl DTypes {
    pub fn new(input: FloatDType, options: FloatOptions) -> Self {
        DTypes { input, output: options.output.unwrap_or(input), accumulator: options.accumulator(input) }
    }

    /// What a normalized gradient is clamped to; see `reference::cast_finite`.
    pub fn limit(&self) -> f64 {
        self.input.finfo().max
    }

    /// Whether a gradient may be larger than its dtype holds.
    pub fn is_narrow(&self) -> bool {
        self.input != self.accumulator
    }
}

/// An input of a kernel. Indices of a [`Space`] lie within it because its shape is the plan's, its strides are Burn's, and its elements are
/// as wide as the kernel takes them to be.
///
/// # Panics
///
/// Where shape or dtype are others: a client of a server sends what it likes.
pub(super) fn input(tensor: CubeTensor, shape: &[usize], dtype: FloatDType) -> CubeTensor {
    let dtype = DType::from(dtype);
    let fits = tensor.shape()[..] == *shape && tensor.dtype == dtype;
    assert!(fits, "{:?} of {:?}, where {shape:?} of {dtype:?} were planned", tensor.shape(), tensor.dtype);
    untile(tensor)
}

/// Both inputs of a product.
pub(super) fn inputs([lhs, rhs]: [CubeTensor; 2], plan: &Plan, dtypes: DTypes) -> [CubeTensor; 2] {
    [input(lhs, &plan.lhs.shape, dtypes.input), input(rhs, &plan.rhs.shape, dtypes.input)]
}

/// That this is what a forward pass saved: kernels read it by the index of an element.
///
/// # Panics
///
/// As [`input`], and where it is not contiguous.
pub(super) fn assert_saved(saved: &CubeTensor, shape: &[usize], dtype: FloatDType) {
    let fits = saved.shape()[..] == *shape && saved.dtype == DType::from(dtype) && saved.is_contiguous();
    assert!(fits, "{:?} of {:?}, where {shape:?} of {dtype:?} were saved", saved.shape(), saved.dtype);
}

pub(super) fn strides(tensor: &CubeTensor) -> Vec<isize> {
    tensor.meta.strides().iter().map(|&stride| stride as isize).collect()
}

/// Strides of a gradient, which is contiguous.
pub(super) fn contiguous(shape: &[usize]) -> Vec<isize> {
    contiguous_strides(shape).iter().map(|&stride| stride as isize).collect()
}

/// Axes of a view, one group behind the other.
pub(super) type AxisGroup = SmallVec<[Axis; 3]>;

/// The contracted axes of a view: at least one, for vectors to run along.
pub(super) fn terms(k: &Axes) -> AxisGroup {
    match k.as_slice() {
        [] => smallvec![Axis { size: 1, stride: Default::default() }],
        axes => axes.into(),
    }
}

/// How many indices some axes have.
pub(super) fn count(axes: &[Axis]) -> usize {
    axes.iter().map(|axis| axis.size).product()
}

/// A tensor along the axes of a product.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub tensor: &'a CubeTensor,
    /// Which strides of the axes are its own, and how many elements they count.
    pub place: usize,
    pub times: usize,
}

impl<'a> View<'a> {
    pub fn new(tensor: &'a CubeTensor, place: usize) -> Self {
        View { tensor, place, times: 1 }
    }

    /// An index into the tensor stands for `times` elements.
    pub fn of_groups(tensor: &'a CubeTensor, place: usize, times: usize) -> Self {
        View { tensor, place, times }
    }

    fn strides(&self, axes: &[Axis]) -> Strides {
        axes.iter().map(|axis| axis.stride[self.place] as usize * self.times).collect()
    }

    pub fn arg(&self, axes: &[Axis]) -> TensorArg {
        let shape = axes.iter().map(|axis| axis.size).collect::<Shape>();
        let handle = self.tensor.handle.clone().binding();
        TensorBinding { handle, strides: self.strides(axes), shape, tiling: Tiling::UNTILED }.into_tensor_arg()
    }

    /// The widest vectors along the last axis, if there is one.
    fn width(&self, axes: &[Axis]) -> usize {
        let Some(last) = axes.len().checked_sub(1) else { return 1 };
        let shape = axes.iter().map(|axis| axis.size).collect::<Shape>();
        let widths = self.tensor.client.io_optimized_vector_sizes(self.tensor.dtype.size());
        cubecl::tensor_vector_size_parallel(widths, &shape, &self.strides(axes), last)
    }
}

/// The widest vectors that all views have along their last axis.
pub(super) fn width<'a>(views: impl IntoIterator<Item = (View<'a>, &'a [Axis])>) -> usize {
    views.into_iter().map(|(view, axes)| view.width(axes)).min().unwrap_or(1)
}

/// The type that indices into all of these need, and counts up to `most`: an expanded tensor has more elements than its memory.
pub(super) fn address<'a>(tensors: impl IntoIterator<Item = &'a CubeTensor>, most: usize) -> AddressType {
    tensors.into_iter().map(CubeTensor::required_address_type).fold(AddressType::from_len(most), AddressType::max)
}

/// A contiguous tensor that nobody has written yet, on the device of another one.
pub(super) fn empty(like: &CubeTensor, shape: &[usize], dtype: FloatDType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device(), shape.iter().copied().collect(), dtype.into())
}

/// Passed for a tensor that a kernel neither reads nor writes. A binding must hold a vector of the widest.
pub(super) fn placeholder(like: &CubeTensor, dtype: FloatDType) -> CubeTensor {
    empty(like, &[16], dtype)
}

/// A tensor whole, in the order of its memory.
pub(super) fn whole(tensor: &CubeTensor) -> TensorArg {
    tensor.clone().into_tensor_arg()
}

pub(super) fn elem(dtype: impl Into<DType>) -> ElemType {
    dtype_to_storage_type(dtype.into())
}

/// The scalar of the dtype that is nearest to `x`, neither zero nor infinite.
pub(super) fn scalar(x: f64, dtype: FloatDType) -> InputScalar {
    let info = dtype.finfo();
    InputScalar::new(x.clamp(info.min_positive, info.max), elem(dtype))
}

/// Units for so many elements, one each.
pub(super) fn elementwise(client: &Client, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, units);
    (cubecl::calculate_cube_count_elemwise(client, units, dim), dim)
}

/// What a device has for reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Units {
    /// Whether units of a plane can add; only where all planes have one size (cubecl#1451).
    pub planes: bool,
    pub plane: usize,
    /// The most in a cube; a power of two.
    pub most: usize,
}

impl Units {
    /// How many keep the device busy: as many as the multiprocessors of a large GPU hold, such as 132 times 2048. What has no planes of one
    /// size is taken for smaller, or a CPU. On llvmpipe it was measured, on GPUs not.
    pub fn busy(&self) -> usize {
        if self.planes { 1 << 18 } else { 1 << 14 }
    }

    pub fn of(client: &Client) -> Self {
        let properties = client.properties();
        let hardware = &properties.hardware;
        let planes = properties.features.plane.contains(Plane::Ops) && hardware.plane_size_min == hardware.plane_size_max;
        let most = hardware.max_units_per_cube.clamp(1, 256);
        Units { planes, plane: hardware.plane_size_max.max(1) as usize, most: 1 << most.ilog2() }
    }
}

/// How rows are reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    pub reduction: Reduction,
    /// Units that share a row, and rows that share a cube.
    units: usize,
    rows: usize,
    /// Vectors that a unit adds before it begins a new sum.
    pub block: usize,
}

/// Vectors of a row that a unit adds, before another unit shares the row.
const VECTORS_PER_UNIT: usize = 8;
/// The most vectors of a row that one unit passes over. Mesa's llvmpipe leaves a kernel's loops, silently, after 65,535 steps: one pass over
/// n vectors takes n and some 2 √n, and a row may be passed over twice.
pub(super) const LONGEST_PASS: usize = 1 << 14;
/// Units of a cube, where they do not add by planes: the fewer, the fewer wait for each other at a barrier.
const UNITS_PER_CUBE: usize = 64;

impl Grid {
    /// `perpendicular`: neighbours in memory belong to different rows, so neighbouring units had better have different rows, too.
    pub fn new(device: Units, rows: usize, vectors: usize, perpendicular: bool) -> Self {
        let is_short = vectors <= LONGEST_PASS;
        let forced = forced().filter(|&reduction| is_short || reduction != Reduction::Unit);
        let reduction = forced.unwrap_or(match device.planes {
            _ if perpendicular && rows >= 4096 && is_short => Reduction::Unit,
            true if vectors <= 2 => Reduction::Unit,
            true if rows < 512 && vectors >= 64 * device.plane => Reduction::Shared,
            true => Reduction::Plane,
            false if vectors <= VECTORS_PER_UNIT => Reduction::Unit,
            false => Reduction::Shared,
        });
        let (units, rows) = match reduction {
            Reduction::Unit => (1, device.most.min(UNITS_PER_CUBE)),
            Reduction::Plane => (device.plane, (device.most / device.plane).max(1)),
            Reduction::Shared => {
                let units = (vectors / VECTORS_PER_UNIT).next_power_of_two().clamp(8.min(device.most), device.most);
                (units, (device.most.min(UNITS_PER_CUBE) / units).max(1))
            }
        };
        Grid { reduction, units, rows, block: block(vectors.div_ceil(units)) }
    }

    pub fn launch(&self, client: &Client, rows: usize) -> (CubeCount, CubeDim) {
        let cubes = u32::try_from(rows.div_ceil(self.rows)).expect("fewer than 2³² cubes");
        let cubes = CubeCountSelection::new(client, cubes).cube_count();
        (cubes, CubeDim::new_2d(self.units as u32, self.rows as u32))
    }

    pub fn rows(&self, row_axes: usize, term_axes: usize, accumulator: FloatDType) -> kernels::RowOptions {
        let wide = accumulator == FloatDType::F64;
        kernels::RowOptions { reduction: self.reduction, units: self.units, cube_rows: self.rows, row_axes, term_axes, wide }
    }
}

/// How many terms of a long sum to add to a sum of their own, for the longest chain of roundings to be short.
pub(super) fn block(terms: usize) -> usize {
    terms.isqrt().max(8)
}

/// See [`force_reduction`].
static FORCED: AtomicU8 = AtomicU8::new(0);

/// For tests: from now on every launch reduces rows this way, except rows too long for one unit, and rows that would be composed are
/// products of kernels, too.
pub fn force_reduction(reduction: Option<Reduction>) {
    FORCED.store(reduction.map_or(0, |reduction| reduction as u8), Ordering::Relaxed);
}

pub(super) fn forced() -> Option<Reduction> {
    let forced = FORCED.load(Ordering::Relaxed);
    Reduction::ALL.into_iter().find(|&reduction| reduction as u8 == forced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_share_a_row_by_its_length_and_by_what_the_device_has() {
        let gpu = Units { planes: true, plane: 32, most: 256 };
        let without_planes = Units { planes: false, plane: 8, most: 256 };
        let small = Units { planes: false, plane: 1, most: 4 };
        // Device, rows, vectors of a row, perpendicular: reduction, units that share a row, rows that share a cube.
        let cases = [
            (gpu, 1 << 20, 1, false, Reduction::Unit, 1, 64),
            (gpu, 1 << 20, 32, false, Reduction::Plane, 32, 8),
            (gpu, 1 << 16, 4096, false, Reduction::Plane, 32, 8),
            // Too few rows to keep the device busy, a plane for each.
            (gpu, 4, 1 << 20, false, Reduction::Shared, 256, 1),
            // Neighbouring units read neighbouring rows.
            (gpu, 1 << 16, 512, true, Reduction::Unit, 1, 64),
            (gpu, 64, 512, true, Reduction::Plane, 32, 8),
            // Longer than llvmpipe's loops.
            (without_planes, 1 << 16, 1 << 16, true, Reduction::Shared, 256, 1),
            (without_planes, 4096, 8, false, Reduction::Unit, 1, 64),
            (without_planes, 4096, 16, false, Reduction::Shared, 8, 8),
            (without_planes, 64, 1024, false, Reduction::Shared, 128, 1),
            (small, 64, 1024, false, Reduction::Shared, 4, 1),
            (small, 64, 2, false, Reduction::Unit, 1, 4),
        ];
        for (device, rows, vectors, perpendicular, reduction, units, cube_rows) in cases {
            let given = Grid::new(device, rows, vectors, perpendicular);
            let name = format!("{device:?}, {rows} rows of {vectors} vectors, perpendicular {perpendicular}");
            assert_eq!((given.reduction, given.units, given.rows), (reduction, units, cube_rows), "{name}");
            // No chain of roundings is long: within a block, and over the blocks of a unit.
            let steps = vectors.div_ceil(units);
            assert!(given.block + steps.div_ceil(given.block) <= 8 + 2 * steps.isqrt() + 2, "{name}: {given:?}");
        }
    }
}
