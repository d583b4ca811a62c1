//! `max |x|` on the device; the twin of `cpu/amax.rs` and of the amaxes in `cpu/plan.rs`
//! (numerics §2).
//!
//! No atomics and no buffer to fill with zeros first: every cube writes the maximum of its tiles,
//! and the kernel that needs the amax reduces these partial maxima in each of its own cubes. A
//! maximum is exact in any order. It is taken on bits, whose order is that of the numbers.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::arithmetic::{Arithmetic, MAGNITUDE, larger};
use super::group::{
    Access, GROUP, Geometry, TileWalk, advance, group_amax, load, place, tile_walk,
};
use super::hadamard::transform;
use super::source::{Source, TileShape, address_type, array, cubes, units, word};
use crate::cpu::Contraction;

/// Rows of the partial maxima, `[SLOTS, cubes]`; a launch writes those that it was asked for.
pub(super) const SLOTS: usize = 4;

/// Cubes that write partial maxima, at most: each cube of the next kernel reads all of them.
const MOST_PARTIALS: u32 = 1024;

/// Which row of the partial maxima.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    /// Of the tensor as it is.
    Plain,
    /// Behind the transform along the columns of the source.
    Columns,
    /// Behind the transform along the rows of the source.
    Rows,
    /// NaN included: not finite iff the tensor is not.
    Watch,
}

impl Slot {
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// What is taken of the tensor as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Plain {
    /// Nothing.
    #[default]
    Nothing,
    /// Its amax.
    Amax,
    /// Its amax, and the largest bits, NaN included.
    Watched,
}

impl Plain {
    const fn is_taken(self) -> bool {
        !matches!(self, Self::Nothing)
    }

    const fn is_watched(self) -> bool {
        matches!(self, Self::Watched)
    }
}

/// What one walk over the source takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Walk {
    pub(super) access: Access,
    pub(super) plain: Plain,
    /// Signs of the transform behind which an amax is wanted.
    pub(super) signs: Option<u16>,
}

impl Walk {
    /// True if it takes anything.
    pub(super) const fn is_needed(&self) -> bool {
        self.plain.is_taken() || self.signs.is_some()
    }
}

/// Maxima of one unit, as bits.
#[derive(CubeType)]
struct Maxima {
    plain: u32,
    watch: u32,
    rotated: u32,
}

/// Takes the maxima that a walk asks for over one tile.
#[cube]
fn walk_tile<F: Float, N: Size>(
    source: &Array<Vector<F, N>>,
    maxima: &mut Maxima,
    tiles: &TileWalk,
    geometry: &Geometry,
    #[comptime] walk: Walk,
) {
    let arithmetic = comptime!(walk.access.arithmetic);
    for round in 0..comptime!(walk.access.rounds()) {
        let here = place(tiles.down, tiles.across, round, walk.access);
        let mut values = Array::<f32>::new(comptime!((GROUP * walk.access.width) as usize));
        load::<F, N>(source, &mut values, here, geometry, walk.access);
        #[unroll]
        for w in 0..comptime!(walk.access.width as usize) {
            let start = comptime!(w * GROUP as usize);
            if comptime!(walk.plain.is_taken()) {
                let amax = group_amax(&values, start, arithmetic);
                maxima.plain = u32::max(maxima.plain, u32::reinterpret(amax));
            }
            if comptime!(walk.plain.is_watched()) {
                #[unroll]
                for i in 0..16usize {
                    let magnitude = u32::reinterpret(values[start + i]) & MAGNITUDE;
                    maxima.watch = u32::max(maxima.watch, magnitude);
                }
            }
            if comptime!(walk.signs.is_some()) {
                let signs = comptime!(walk.signs.unwrap_or_default());
                transform(
                    &mut values,
                    start,
                    signs,
                    comptime!(walk.access.elements),
                    arithmetic,
                );
                let amax = group_amax(&values, start, arithmetic);
                maxima.rotated = u32::max(maxima.rotated, u32::reinterpret(amax));
            }
        }
    }
}

/// Partial maxima of the tiles of each cube.
#[cube(launch_unchecked, address_type = "dynamic")]
fn partial_amax<F: Float, NC: Size, NR: Size>(
    by_columns: &Array<Vector<F, NC>>,
    columns_geometry: Geometry,
    by_rows: &Array<Vector<F, NR>>,
    rows_geometry: Geometry,
    partials: &mut Array<u32>,
    cubes: u32,
    #[comptime] columns: Walk,
    #[comptime] rows: Walk,
    #[define(F)] _dtype: StorageType,
) {
    let units = comptime!(columns.access.tiling.units);
    let mut along_columns = Maxima {
        plain: 0u32.runtime(),
        watch: 0u32.runtime(),
        rotated: 0u32.runtime(),
    };
    let mut along_rows = Maxima {
        plain: 0u32.runtime(),
        watch: 0u32.runtime(),
        rotated: 0u32.runtime(),
    };
    let mut tile = u32::cast_from(CUBE_POS);
    let mut tiles = tile_walk(cubes, &columns_geometry);
    while tile < columns_geometry.tiles_across * columns_geometry.tiles_down {
        if comptime!(columns.is_needed()) {
            walk_tile::<F, NC>(
                by_columns,
                &mut along_columns,
                &tiles,
                &columns_geometry,
                columns,
            );
        }
        if comptime!(rows.is_needed()) {
            walk_tile::<F, NR>(by_rows, &mut along_rows, &tiles, &rows_geometry, rows);
        }
        tile += cubes;
        advance(&mut tiles, &columns_geometry);
    }
    let mut shared = SharedMemory::<u32>::new(comptime!(units as usize));
    if comptime!(columns.plain.is_taken() || rows.plain.is_taken()) {
        let largest = u32::max(along_columns.plain, along_rows.plain);
        write_partial(largest, partials, cubes, &mut shared, Slot::Plain, units);
    }
    if comptime!(columns.plain.is_watched() || rows.plain.is_watched()) {
        let largest = u32::max(along_columns.watch, along_rows.watch);
        write_partial(largest, partials, cubes, &mut shared, Slot::Watch, units);
    }
    if comptime!(columns.signs.is_some()) {
        write_partial(
            along_columns.rotated,
            partials,
            cubes,
            &mut shared,
            Slot::Columns,
            units,
        );
    }
    if comptime!(rows.signs.is_some()) {
        write_partial(
            along_rows.rotated,
            partials,
            cubes,
            &mut shared,
            Slot::Rows,
            units,
        );
    }
}

/// Writes the largest of one number per unit as the partial maximum of this cube.
#[cube]
pub(super) fn write_partial(
    largest: u32,
    partials: &mut Array<u32>,
    cubes: u32,
    shared: &mut SharedMemory<u32>,
    #[comptime] slot: Slot,
    #[comptime] units: u32,
) {
    let largest = cube_max(largest, shared, units);
    if UNIT_POS == 0 {
        partials[comptime!(slot.index()) * cubes as usize + CUBE_POS] = largest;
    }
}

/// The largest of one number per unit, in every unit.
#[cube]
pub(super) fn cube_max(
    largest: u32,
    shared: &mut SharedMemory<u32>,
    #[comptime] units: u32,
) -> u32 {
    shared[UNIT_POS as usize] = largest;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(units.trailing_zeros() + 1) {
        let half = comptime!(units >> step);
        if UNIT_POS < half {
            let other = shared[(UNIT_POS + half) as usize];
            let own = shared[UNIT_POS as usize];
            shared[UNIT_POS as usize] = u32::max(own, other);
        }
        sync_cube();
    }
    let result = shared[0];
    // The next writer waits until everybody has read.
    sync_cube();
    result
}

/// The largest of the partial maxima of a slot, in every unit; as bits.
#[cube]
pub(super) fn reduce_partials(
    partials: &Array<u32>,
    cubes: usize,
    shared: &mut SharedMemory<u32>,
    #[comptime] slot: Slot,
    #[comptime] units: u32,
) -> u32 {
    let mut largest = 0u32.runtime();
    let mut i = UNIT_POS as usize;
    while i < cubes {
        largest = u32::max(largest, partials[comptime!(slot.index()) * cubes + i]);
        i += comptime!(units as usize);
    }
    cube_max(largest, shared, units)
}

/// A region of the source: what shares one amax.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Regions {
    rows: u32,
    cols: u32,
    /// Elements from one row to the next.
    stride: u32,
    /// Rows and columns of a region.
    region_rows: u32,
    region_cols: u32,
    /// Regions of a row of regions, and all of them.
    across: u32,
    count: u32,
    cubes: u32,
}

/// One amax for each region of the source, region after region of a row of regions, or of a column
/// of regions if `by_column`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn region_amax<F: Float>(
    source: &Array<F>,
    regions: Regions,
    amaxes: &mut Array<f32>,
    #[comptime] by_column: bool,
    #[comptime] units: u32,
    #[comptime] arithmetic: Arithmetic,
    #[define(F)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<u32>::new(comptime!(units as usize));
    let down = regions.count / regions.across;
    let mut region = u32::cast_from(CUBE_POS);
    while region < regions.count {
        let row0 = region / regions.across * regions.region_rows;
        let col0 = region % regions.across * regions.region_cols;
        let rows = u32::min(regions.region_rows, regions.rows - row0);
        let cols = u32::min(regions.region_cols, regions.cols - col0);
        let mut amax = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < rows as usize * cols as usize {
            let row = row0 as usize + i / cols as usize;
            let col = col0 as usize + i % cols as usize;
            let value = f32::cast_from(source[row * regions.stride as usize + col]);
            amax = larger(value, amax, arithmetic);
            i += comptime!(units as usize);
        }
        let amax = cube_max(u32::reinterpret(amax), &mut shared, units);
        if UNIT_POS == 0 {
            let index = if comptime!(by_column) {
                region % regions.across * down + region / regions.across
            } else {
                region
            };
            amaxes[index as usize] = f32::reinterpret(amax);
        }
        region += regions.cubes;
    }
}

/// Partial maxima in device memory.
#[derive(Clone, Debug)]
pub(super) struct Partials<R: CubeRuntime> {
    /// u32, `[SLOTS, cubes]`.
    pub(super) tensor: CubeTensor<R>,
    pub(super) cubes: u32,
}

/// What is wanted of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) plain: Plain,
    /// Signs of the transform along the columns of the source.
    pub(super) columns: Option<u16>,
    /// Signs of the transform along its rows.
    pub(super) rows: Option<u16>,
}

/// Takes all wanted maxima of a source in one launch; `None` if nothing is wanted.
pub(super) fn launch_partials<R: CubeRuntime>(
    source: &Source<R>,
    wanted: Wanted,
    arithmetic: Arithmetic,
) -> Option<Partials<R>> {
    if wanted == Wanted::default() {
        return None;
    }
    let client = &source.tensor.client;
    let tiling = source.tiling(if wanted.rows.is_some() {
        TileShape::Square
    } else {
        TileShape::Lines
    });
    // The untransformed maxima come with whichever walk there is.
    let by_rows = wanted.rows.is_some() && wanted.columns.is_none();
    let walk = |along, signs, untransformed: bool| Walk {
        access: source.access(along, tiling, arithmetic),
        plain: if untransformed {
            wanted.plain
        } else {
            Plain::Nothing
        },
        signs,
    };
    let columns = walk(Contraction::Columns, wanted.columns, !by_rows);
    let rows = walk(Contraction::Rows, wanted.rows, by_rows);
    let covered = [source.rows, source.cols];
    let (columns_width, by_columns) = source.argument(Contraction::Columns);
    let (rows_width, by_rows) = source.argument(Contraction::Rows);
    let (columns_geometry, tiles) = source.geometry(Contraction::Columns, tiling, covered);
    let (rows_geometry, _) = source.geometry(Contraction::Rows, tiling, covered);
    let cubes = cubes(client, tiles, 8).min(MOST_PARTIALS);
    let partials = empty_device_contiguous_dtype(
        client.clone(),
        source.tensor.device.clone(),
        Shape::new([SLOTS, cubes as usize]),
        DType::U32,
    );
    // SAFETY: units beyond the source read nothing (`load` compares with the geometry, which is
    // that of the buffer), and each cube writes its own column of the partial maxima.
    unsafe {
        crate::kernels::count_launch();
        partial_amax::launch_unchecked::<R>(
            client,
            CubeCount::new_1d(cubes),
            CubeDim::new_1d(tiling.units),
            address_type(&[&source.tensor]),
            columns_width,
            rows_width,
            by_columns,
            columns_geometry,
            by_rows,
            rows_geometry,
            array(&partials),
            cubes,
            columns,
            rows,
            source.tensor.dtype.into(),
        );
    }
    Some(Partials {
        tensor: partials,
        cubes,
    })
}

/// One amax for each `[region rows, region columns]` of a source, f32.
///
/// Regions are in the order of the packed operand: row by row of regions along
/// [`Contraction::Columns`], column by column along [`Contraction::Rows`].
pub(super) fn launch_regions<R: CubeRuntime>(
    source: &Source<R>,
    region: [usize; 2],
    along: Contraction,
    arithmetic: Arithmetic,
) -> CubeTensor<R> {
    let client = &source.tensor.client;
    let (down, across) = (
        source.rows.div_ceil(region[0]),
        source.cols.div_ceil(region[1]),
    );
    let count = word(down * across);
    let cubes = cubes(client, count, 16);
    let units = units(client);
    let amaxes = empty_device_contiguous_dtype(
        client.clone(),
        source.tensor.device.clone(),
        Shape::new([down * across]),
        DType::F32,
    );
    let regions = RegionsLaunch::new(
        word(source.rows),
        word(source.cols),
        word(source.stride()),
        word(region[0]),
        word(region[1]),
        word(across),
        count,
        cubes,
    );
    // SAFETY: a region ends where the source does, and there is an amax for each of them.
    unsafe {
        crate::kernels::count_launch();
        region_amax::launch_unchecked::<R>(
            client,
            CubeCount::new_1d(cubes),
            CubeDim::new_1d(units),
            address_type(&[&source.tensor]),
            array(&source.tensor),
            regions,
            array(&amaxes),
            along == Contraction::Rows,
            units,
            arithmetic,
            source.tensor.dtype.into(),
        );
    }
    amaxes
}
