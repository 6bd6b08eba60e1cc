//! How a product is cut: into tasks for threads, and into blocks for caches. Pure values; nothing here knows of memory.

use super::{super::streaming::STREAM_FROM, threads};

/// Sizes of a product. Its lanes are the free axis along which a vector register is filled; elements of the other, the broadcast one, are
/// broadcast to all lanes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sizes {
    /// Batch indices, each a product of its own.
    pub batches: usize,
    pub lanes: usize,
    pub broadcast: usize,
    /// Elements, or pairs of bf16.
    pub k: usize,
    /// Bytes of an element of the compute dtype.
    pub element: usize,
}

/// What must stay together until a block is complete.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Whole {
    Nothing,
    Lanes,
    Broadcast,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Blocking {
    /// Parts of the product of a batch index, each a task of its own.
    pub lane_parts: usize,
    pub broadcast_parts: usize,
    /// Above 1, each part gives a partial sum.
    pub k_parts: usize,
    /// Sizes of a block.
    pub lane_block: usize,
    pub broadcast_block: usize,
    pub k_block: usize,
    pub sums: Sums,
    /// Whether partial sums are added with their rounding errors.
    pub compensated: bool,
    /// Whether lanes are packed even where they could be read in place.
    pub packs_lanes: bool,
    /// Whether the output is written by non-temporal stores: it is large, and written once.
    pub streams: bool,
}

/// Where sums are accumulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sums {
    Output,
    /// In registers alone: K is one block. Few columns at a time are rounded to the output, so that it is written while others are multiplied.
    Registers,
    /// Block by block.
    Workspace,
}

/// Where the sums of a product go, and what is done with them there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Destination {
    /// What its epilogue needs together.
    pub whole: Whole,
    /// The output is of the compute dtype.
    pub is_compute: bool,
    /// Its lanes are contiguous in the output, and its broadcast vectors have one stride there.
    pub is_regular: bool,
    /// An epilogue reads complete sums again.
    pub is_read_again: bool,
}

/// The length of K in a packed panel: with 64 lanes of f32, 64 KiB, which a tile reads once, from the second-level cache. The first-level cache
/// holds the columns beside it, 6 of 1 KiB, or a line of several columns for each index of K.
const K_BLOCK: usize = 256;
/// Bytes of the packed lanes of a block: half of a second-level cache.
const PACKED: usize = 256 << 10;
/// Columns of a block that is not accumulated in a workspace.
const BROADCAST_BLOCK: usize = 1024;
/// Elements of a block that is accumulated in a workspace.
const WORKSPACE: usize = 1 << 15;
/// Blocks of K that are added without their rounding errors: up to 4096 elements, or pairs of bf16.
pub(super) const PLAIN_BLOCKS: usize = 16;
/// The least multiplications of a task, unless a thread would have none: nearly a millisecond. Packing the other side again costs little
/// beside that.
const TASK: usize = 1 << 26;
/// Lanes of a part, at least: two vectors of 16 f32.
const PART_LANES: usize = 32;
/// Broadcast vectors of a part, at least.
const PART_BROADCAST: usize = 16;
/// Broadcast vectors for which lanes are better read in place than packed.
const FEW: usize = 8;

impl Blocking {
    pub fn new(sizes: Sizes, to: Destination, threads: usize) -> Self {
        let Sizes { batches, lanes, broadcast, k, element } = sizes;
        let Destination { whole, is_compute, is_regular, is_read_again } = to;
        let [lane_parts, broadcast_parts, k_parts] = parts(sizes, whole, threads);
        let k_block = K_BLOCK.min(k);
        let compensated = k > PLAIN_BLOCKS * K_BLOCK || k_parts > 1;
        let sums = match (is_regular && !compensated, is_compute) {
            (true, true) => Sums::Output,
            (true, false) if k <= K_BLOCK && !is_read_again => Sums::Registers,
            _ => Sums::Workspace,
        };
        let workspace = sums == Sums::Workspace;
        let most_lanes = (PACKED / (element * K_BLOCK)).min(lanes);
        let (lane_block, broadcast_block) = match (workspace, whole) {
            // Partial sums of the whole product are added when all are there.
            _ if k_parts > 1 => (lanes, broadcast),
            (false, Whole::Broadcast) => (most_lanes, broadcast),
            (false, Whole::Lanes) => (most_lanes, (WORKSPACE / lanes).clamp(PART_BROADCAST, BROADCAST_BLOCK)),
            (false, Whole::Nothing) => (most_lanes, BROADCAST_BLOCK),
            (true, Whole::Broadcast) => {
                ((WORKSPACE / broadcast / PART_LANES * PART_LANES).clamp(PART_LANES, most_lanes.max(PART_LANES)), broadcast)
            }
            (true, Whole::Lanes) => (lanes, (WORKSPACE / lanes).max(PART_BROADCAST)),
            (true, Whole::Nothing) => (most_lanes, (WORKSPACE / most_lanes).max(PART_BROADCAST)),
        };
        let output = batches.saturating_mul(lanes).saturating_mul(broadcast).saturating_mul(element);
        Blocking {
            lane_parts,
            broadcast_parts,
            k_parts,
            lane_block: lane_block.min(lanes),
            broadcast_block: broadcast_block.min(broadcast),
            k_block,
            sums,
            compensated,
            packs_lanes: broadcast > FEW,
            streams: sums == Sums::Output && !is_read_again && k <= K_BLOCK && output >= STREAM_FROM,
        }
    }
}

/// The width of panels for so many lanes, in registers of `register` lanes: as few panels as there must be, and no wider than that takes, as
/// a narrow one has more to load for each multiplication. The last takes what is left.
pub(super) fn panel_width(lanes: usize, register: usize, most_registers: usize) -> usize {
    let registers = lanes.div_ceil(register);
    let panels = registers.div_ceil(most_registers);
    registers.div_ceil(panels) * register
}

/// Parts along the lanes, the broadcast vectors, and K.
fn parts(sizes: Sizes, whole: Whole, threads: usize) -> [usize; 3] {
    let Sizes { batches, lanes, broadcast, k, .. } = sizes;
    if threads <= 1 || batches.is_multiple_of(threads) {
        return [1, 1, 1];
    }
    let work = batches.saturating_mul(lanes).saturating_mul(broadcast).saturating_mul(k);
    let wanted = (work / TASK).clamp(threads, threads::TASKS_PER_THREAD * threads).div_ceil(batches);
    // Few outputs and a long K are cut along K: partial sums fit a workspace, and a part reads at least four times as many elements as it
    // has sums.
    let few = lanes.saturating_mul(broadcast) <= WORKSPACE;
    if few && k >= PLAIN_BLOCKS * K_BLOCK && k / (4 * threads) >= lanes.max(broadcast) {
        return [1, 1, threads.div_ceil(batches).min(k.div_ceil(K_BLOCK))];
    }
    // As many as share out evenly.
    let even = |parts: usize| if parts >= threads { parts / threads * threads } else { parts };
    let lane_parts = if whole == Whole::Lanes { 1 } else { even((lanes / PART_LANES).clamp(1, wanted)) };
    let broadcast_parts = if whole == Whole::Broadcast { 1 } else { even((broadcast / PART_BROADCAST).clamp(1, wanted)) };
    // Lanes are packed, broadcast vectors most often read in place: these can be read by every part.
    if lane_parts >= broadcast_parts { [lane_parts, 1, 1] } else { [1, broadcast_parts, 1] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(batches: usize, lanes: usize, broadcast: usize, k: usize) -> Sizes {
        Sizes { batches, lanes, broadcast, k, element: 4 }
    }

    /// An output in which sums are accumulated, and left.
    const OUTPUT: Destination = Destination { whole: Whole::Nothing, is_compute: true, is_regular: true, is_read_again: false };

    #[test]
    fn a_product_is_cut_along_lanes_then_broadcast_vectors_then_k() {
        for (sizes, whole, threads, expected) in [
            (sizes(1, 64, 64, 768), Whole::Nothing, 1, [1, 1, 1]),
            (sizes(1, 64, 64, 768), Whole::Nothing, 2, [2, 1, 1]),
            (sizes(32, 128, 128, 64), Whole::Nothing, 2, [1, 1, 1]),
            (sizes(1, 512, 512, 512), Whole::Nothing, 2, [2, 1, 1]),
            (sizes(1, 1024, 512, 512), Whole::Nothing, 2, [4, 1, 1]),
            (sizes(1, 512, 512, 512), Whole::Lanes, 2, [1, 2, 1]),
            (sizes(1, 24, 512, 512), Whole::Nothing, 2, [1, 2, 1]),
            (sizes(1, 8, 8, 1 << 20), Whole::Nothing, 2, [1, 1, 2]),
            (sizes(1, 8, 8, 1 << 20), Whole::Nothing, 8, [1, 1, 8]),
            (sizes(3, 8, 8, 1 << 20), Whole::Nothing, 8, [1, 1, 3]),
            (sizes(1, 1024, 1024, 1 << 20), Whole::Nothing, 2, [8, 1, 1]),
        ] {
            assert_eq!(parts(sizes, whole, threads), expected, "{sizes:?}, {whole:?}, {threads} threads");
        }
    }

    #[test]
    fn panels_are_few_and_no_wider_than_that_takes() {
        for (lanes, register, expected) in
            [(1, 16, 16), (17, 16, 32), (64, 16, 64), (80, 16, 48), (96, 16, 48), (144, 16, 48), (208, 16, 64), (256, 16, 64)]
        {
            assert_eq!(panel_width(lanes, register, 4), expected, "{lanes} lanes in registers of {register}");
        }
        assert_eq!([8, 9, 24, 25].map(|lanes| panel_width(lanes, 8, 2)), [8, 16, 16, 16], "in registers of 8");
    }

    #[test]
    fn long_sums_are_compensated_in_a_workspace_and_short_ones_added_in_the_output() {
        for k in [1, 256, 4096, 4097, 1 << 22] {
            let blocking = Blocking::new(sizes(1, 40, 30, k), OUTPUT, 1);
            let sums = if k > 4096 { Sums::Workspace } else { Sums::Output };
            assert_eq!((blocking.compensated, blocking.sums), (k > 4096, sums), "K = {k}");
            assert!(blocking.k_block <= 256 && blocking.k_block <= k);
        }
    }

    #[test]
    fn sums_of_another_dtype_are_rounded_from_registers_where_they_are_complete_there() {
        let other = Destination { is_compute: false, ..OUTPUT };
        for (k, to, sums) in [
            (K_BLOCK, other, Sums::Registers),
            (K_BLOCK + 1, other, Sums::Workspace),
            (K_BLOCK, Destination { is_read_again: true, ..other }, Sums::Workspace),
            (K_BLOCK, Destination { is_regular: false, ..other }, Sums::Workspace),
            (K_BLOCK, Destination { is_regular: false, ..OUTPUT }, Sums::Workspace),
        ] {
            assert_eq!(Blocking::new(sizes(1, 40, 30, k), to, 1).sums, sums, "K = {k}, {to:?}");
        }
    }

    #[test]
    fn lanes_are_packed_for_more_than_a_few_broadcast_vectors() {
        for (broadcast, packs) in [(1, false), (FEW, false), (FEW + 1, true)] {
            assert_eq!(Blocking::new(sizes(1, 64, broadcast, 64), OUTPUT, 1).packs_lanes, packs, "{broadcast}");
        }
    }

    #[test]
    fn large_outputs_are_streamed_if_each_element_is_written_once_and_not_read_again() {
        let rows = STREAM_FROM / 4 / 1000;
        let (large, small) = (sizes(1, 1000, rows + 1, K_BLOCK), sizes(1, 1000, rows - 1, K_BLOCK));
        for (sizes, to, streams) in [
            (large, OUTPUT, true),
            (Sizes { batches: 1000, lanes: 1, ..large }, OUTPUT, true),
            (small, OUTPUT, false),
            (Sizes { k: K_BLOCK + 1, ..large }, OUTPUT, false),
            (large, Destination { is_read_again: true, ..OUTPUT }, false),
            (large, Destination { is_compute: false, ..OUTPUT }, false),
            (large, Destination { is_regular: false, ..OUTPUT }, false),
        ] {
            assert_eq!(Blocking::new(sizes, to, 2).streams, streams, "{sizes:?}, {to:?}");
        }
    }

    #[test]
    fn a_workspace_holds_what_must_stay_whole_and_little_more() {
        for (lanes, broadcast) in [(1, 1), (16, 17), (1000, 3), (3, 1000), (70_000, 40), (40, 70_000)] {
            for whole in [Whole::Nothing, Whole::Lanes, Whole::Broadcast] {
                let blocking =
                    Blocking::new(sizes(1, lanes, broadcast, 100), Destination { whole, is_regular: false, ..OUTPUT }, 1);
                assert!(whole != Whole::Lanes || blocking.lane_block == lanes, "{blocking:?}");
                assert!(whole != Whole::Broadcast || blocking.broadcast_block == broadcast, "{blocking:?}");
                assert!(blocking.lane_block >= 1 && blocking.broadcast_block >= 1, "{blocking:?}");
                let least = PART_LANES * blocking.broadcast_block.max(PART_BROADCAST * blocking.lane_block / PART_LANES);
                assert!(blocking.lane_block * blocking.broadcast_block <= WORKSPACE.max(least), "{blocking:?}");
            }
        }
    }
}
