//! Writes the CUDA source of every GPU kernel to a folder: one file for each dtype, vector width, reduction and option.

extern crate self as burn_cubecl; // Where the kernels find CubeCL.
pub use cubecl;

#[path = "../src/gpu/kernels/mod.rs"]
#[allow(dead_code, missing_docs, reason = "launches are left to burn-dot")]
mod kernels;

use std::{fs, path::PathBuf, sync::Arc};

use cubecl::{
    Compiler,
    cmma::MatrixLayout,
    device::DeviceId,
    ir::{
        ContiguousElements, DeviceIdentity, DeviceProperties, ElemType, FloatKind, HardwareProperties, MemoryDeviceProperties,
        MmaProperties, TargetProperties, features::Plane,
    },
    prelude::*,
    profile::TimingMethod,
    server::Handle,
    zspace::{Shape, Strides, Tiling},
};
use cubecl_common::device::ServiceId;
use cubecl_cpp::{
    register_supported_types,
    shared::{CompilationOptions, CppCompiler, CppSupportedFeatures},
    target::Cuda,
};
use cubecl_environment::stream::StreamId;
use kernels::{Reduction, RowOptions, matrices, rows};

const PLANE: u32 = 32;

fn main() {
    let folder = PathBuf::from(std::env::args().nth(1).expect("the folder for the sources"));
    fs::create_dir_all(&folder).expect("a folder that can be made");
    let (device, target) = (Arc::new(device()), Arc::new(target()));
    let mut sources = Sources { folder, device, target, address: AddressType::U32, count: 0 };
    for dtypes in DTypes::ALL {
        let widest = 16 / dtypes.input_size();
        for width in [1, 2, 4, 8].into_iter().filter(|&width| width <= widest) {
            sources.rows(dtypes, width);
            sources.matrices(dtypes, width);
        }
    }
    // Tensors too large for indices of 32 bits.
    sources.address = AddressType::U64;
    sources.rows(DTypes::ALL[0], 4);
    sources.matrices(DTypes::ALL[0], 1);
    println!("{} sources", sources.count);
}

/// Dtypes of a product: what launches choose for each dtype of the inputs, and an output wider than these.
#[derive(Clone, Copy)]
struct DTypes {
    input: FloatKind,
    output: FloatKind,
    accumulator: FloatKind,
}

impl DTypes {
    const ALL: [DTypes; 7] = {
        const fn same(input: FloatKind, accumulator: FloatKind) -> DTypes {
            DTypes { input, output: input, accumulator }
        }
        [
            same(FloatKind::F32, FloatKind::F32),
            same(FloatKind::F16, FloatKind::F32),
            same(FloatKind::BF16, FloatKind::F32),
            same(FloatKind::F64, FloatKind::F64),
            DTypes { input: FloatKind::F16, output: FloatKind::F32, accumulator: FloatKind::F32 },
            DTypes { input: FloatKind::F32, output: FloatKind::BF16, accumulator: FloatKind::F32 },
            DTypes { input: FloatKind::F32, output: FloatKind::F64, accumulator: FloatKind::F64 },
        ]
    };

    fn input_size(self) -> usize {
        match self.input {
            FloatKind::F64 => 8,
            FloatKind::F32 => 4,
            _ => 2,
        }
    }

    fn is_narrow(self) -> bool {
        self.input != self.accumulator
    }

    fn scalar(self) -> InputScalar {
        InputScalar::new(1.0, ElemType::Float(self.accumulator))
    }

    fn name(self) -> String {
        format!("{:?}_{:?}", self.input, self.output).to_lowercase()
    }
}

/// Where sources go, and for which device.
struct Sources {
    folder: PathBuf,
    device: Arc<DeviceProperties>,
    target: Arc<TargetProperties>,
    /// Of indices.
    address: AddressType,
    count: usize,
}

macro_rules! write {
    ($sources:expr, $name:expr, $dim:expr, $kernel:path, $($argument:expr),* $(,)?) => {{
        use $kernel as kernel;
        let kernel = kernel::create_dummy_kernel(
            $sources.device.clone(),
            $sources.target.clone(),
            CubeCount::Static(1, 1, 1),
            $dim,
            $sources.address,
            $($argument),*
        );
        $sources.write($name, &kernel);
    }};
}

impl Sources {
    fn write(&mut self, name: String, kernel: &impl CubeKernel) {
        let options = CompilationOptions {
            warp_size: PLANE as usize,
            supports_features: CppSupportedFeatures { fast_math: true, dp4a: true, grid_constants: true, ..Default::default() },
            ..Default::default()
        };
        let source = CppCompiler::<Cuda>::default().compile(kernel.define(), &options);
        let source = source.unwrap_or_else(|error| panic!("{name}: {error:?}")).to_string();
        let bits = if self.address == AddressType::U64 { "_u64" } else { "" };
        fs::write(self.folder.join(format!("{name}{bits}.cu")), source).expect("a file that can be written");
        self.count += 1;
    }

    fn rows(&mut self, dtypes: DTypes, width: usize) {
        let DTypes { input, output, accumulator } = dtypes;
        let name = format!("{}_{width}", dtypes.name());
        for reduction in Reduction::ALL {
            for (axes, normalize, save) in [(1, false, false), (1, true, false), (1, true, true), (2, true, true)] {
                let rows = by(reduction, axes, dtypes);
                let options = if save {
                    "save"
                } else if normalize {
                    "cosine"
                } else {
                    "plain"
                };
                write!(
                    self,
                    format!("forward_{name}_{reduction:?}_{options}_{axes}"),
                    dim(rows),
                    rows::forward,
                    width,
                    tensor(2 * axes),
                    tensor(2 * axes),
                    tensor(axes),
                    tensor(1),
                    dtypes.scalar(),
                    64,
                    64,
                    8,
                    rows,
                    normalize,
                    save,
                    [elem(input), elem(output), elem(accumulator)],
                );
            }
        }
        for (normalize, saturate) in [(false, false), (true, dtypes.is_narrow())] {
            for (grad_x, grad_y, in_chunks, per_unit) in
                [(true, true, false, 1), (true, true, false, 4), (true, true, true, 2), (true, false, false, 4), (false, true, false, 4)]
            {
                let per_unit = per_unit.min(rows::MOST_ELEMENTS / width);
                let options = rows::BackwardOptions {
                    own_axes: 1,
                    sum_axes: 1,
                    term_axes: 1,
                    per_unit,
                    normalize,
                    x_is_lhs: grad_y,
                    grad_x,
                    grad_y,
                    saturate_x: saturate && !in_chunks,
                    saturate_y: saturate,
                };
                let of_x = if in_chunks { accumulator } else { input };
                write!(
                    self,
                    format!("backward_{name}_{normalize}_{grad_x}_{grad_y}_{in_chunks}_{per_unit}"),
                    CubeDim::new_1d(256),
                    rows::backward,
                    width,
                    tensor(3),
                    tensor(3),
                    tensor(3),
                    tensor(3),
                    tensor(3),
                    tensor(3),
                    dtypes.scalar(),
                    64,
                    64,
                    8,
                    8,
                    64,
                    64,
                    options,
                    [elem(input), elem(output), elem(of_x), elem(accumulator)],
                );
            }
            write!(
                self,
                format!("sum_chunks_{name}_{normalize}"),
                CubeDim::new_1d(256),
                rows::sum_chunks,
                width,
                tensor(2),
                tensor(1),
                dtypes.scalar(),
                64,
                8,
                64,
                saturate,
                [elem(accumulator), elem(input)],
            );
        }
    }

    fn matrices(&mut self, dtypes: DTypes, width: usize) {
        let DTypes { input, output, accumulator } = dtypes;
        let name = format!("{}_{width}", dtypes.name());
        let sides = matrices::Sides { x_axes: 2, y_axes: 1, term_axes: 1 };
        for reduction in Reduction::ALL {
            let (x_rows, y_rows) = (by(reduction, 2, dtypes), by(reduction, 1, dtypes));
            write!(
                self,
                format!("norms_{name}_{reduction:?}"),
                dim(x_rows),
                matrices::norms,
                width,
                tensor(3),
                tensor(2),
                tensor(1),
                dtypes.scalar(),
                64,
                64,
                64,
                8,
                x_rows,
                y_rows,
                [elem(input), elem(accumulator)],
            );
            write!(
                self,
                format!("project_{name}_{reduction:?}"),
                dim(y_rows),
                matrices::project,
                width,
                tensor(2),
                tensor(2),
                tensor(2),
                tensor(2),
                tensor(1),
                tensor(3),
                tensor(2),
                dtypes.scalar(),
                64,
                64,
                0,
                64,
                8,
                y_rows,
                sides,
                dtypes.is_narrow(),
                [elem(input), elem(accumulator)],
            );
        }
        write!(
            self,
            format!("unit_vectors_{name}"),
            CubeDim::new_1d(256),
            matrices::unit_vectors,
            width,
            tensor(3),
            tensor(2),
            tensor(1),
            tensor(2),
            tensor(2),
            64,
            64,
            0,
            64,
            sides,
            [elem(input), elem(accumulator)],
        );
        write!(
            self,
            format!("cosines_{name}"),
            CubeDim::new_1d(256),
            matrices::cosines,
            width,
            tensor(3),
            tensor(4),
            tensor(4),
            tensor(3),
            tensor(3),
            tensor(3),
            64,
            64,
            64,
            8,
            matrices::CosineAxes { out_axes: 3, term_axes: 1 },
            [elem(input), elem(output), elem(accumulator)],
        );
    }
}

fn elem(kind: FloatKind) -> ElemType {
    ElemType::Float(kind)
}

fn by(reduction: Reduction, axes: usize, dtypes: DTypes) -> RowOptions {
    let (units, cube_rows) = match reduction {
        Reduction::Unit => (1, 64),
        Reduction::Plane => (PLANE as usize, 8),
        Reduction::Shared => (256, 1),
    };
    RowOptions { reduction, units, cube_rows, row_axes: axes, term_axes: axes, wide: dtypes.accumulator == FloatKind::F64 }
}

fn dim(rows: RowOptions) -> CubeDim {
    CubeDim::new_2d(rows.units as u32, rows.cube_rows as u32)
}

/// A tensor of some rank that is nowhere: only its type matters.
fn tensor(rank: usize) -> TensorArg {
    let service = ServiceId::of::<Sources>(DeviceId::new(0, 0));
    let handle = Handle::new(service, StreamId { value: 0 }, 1 << 20).binding();
    let (shape, strides): (Shape, Strides) = ((0..rank).map(|_| 8).collect(), (0..rank).map(|_| 8).collect());
    TensorBinding { handle, strides, shape, tiling: Tiling::UNTILED }.into_tensor_arg()
}

/// An H100, as CubeCL's runtime for CUDA would describe it, as far as these kernels ask.
fn device() -> DeviceProperties {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: PLANE,
        plane_size_max: PLANE,
        max_bindings: 1024,
        max_shared_memory_size: 227 << 10,
        max_cube_count: (i32::MAX as u32, 65_535, 65_535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(132),
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: usize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let identity = DeviceIdentity { name: "none".into(), fingerprint: "none".into(), physical: None };
    let memory = MemoryDeviceProperties::new(1 << 34, 512);
    let mut device = DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System, identity);
    register_supported_types(&mut device);
    device.features.memory_reinterpret = true;
    device.features.alignment = true;
    device.features.plane.insert(Plane::Ops);
    device.features.plane.insert(Plane::Sync);
    device.features.plane.insert(Plane::NonUniformControlFlow);
    device
}

fn target() -> TargetProperties {
    TargetProperties {
        mma: MmaProperties {
            register_size_bits: 32,
            const_plane_size: PLANE,
            register_layout_a: MatrixLayout::RowMajor,
            register_layout_b: MatrixLayout::ColMajor,
            register_layout_acc: MatrixLayout::RowMajor,
            register_duplication_a: 1,
            register_duplication_b: 1,
            register_duplication_acc: 1,
            contiguous_elements: ContiguousElements::new(|_, _, _| 1),
        },
    }
}
