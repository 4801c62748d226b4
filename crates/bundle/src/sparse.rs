//! Sparse files of an archive, in the old GNU encoding: a map of the parts that are stored, zeros in between.
//! Source: the GNU tar manual, "Storing Sparse Files" (old GNU format).

use std::io::{self, Read};
use std::sync::Arc;

/// Bytes of one entry of the map: where a part goes and how long it is, twelve digits each.
const REGION: usize = 24;

/// How many parts all sparse files of an archive may have together; with them goes the memory for their maps.
pub(crate) const MOST_REGIONS: usize = 1 << 16;

/// A part of a sparse file that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    /// Where it goes, in bytes of the file.
    offset: u64,
    length: u64,
}

/// What a file with holes is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// Those that have bytes, in order, none over another.
    regions: Vec<Region>,
    /// Bytes of the file, holes included.
    pub(crate) size: u64,
}

/// A sparse file in an archive.
#[derive(Debug)]
pub(crate) struct SparseFile {
    /// Offset of its stored bytes, which follow each other without gaps.
    pub(crate) offset: u64,
    /// How many bytes are stored.
    pub(crate) stored: u64,
    pub(crate) map: Arc<Map>,
}

impl Map {
    /// Reads a map of fields as they stand in the headers. `stored` is how many bytes the entry has.
    pub(crate) fn new(
        fields: &[u8],
        size: u64,
        stored: u64,
        number: impl Fn(&[u8]) -> Result<u64, &'static str>,
    ) -> Result<Self, &'static str> {
        let mut regions = Vec::new();
        let (mut end, mut total) = (0, 0);
        // An empty field ends the map; after that only padding comes.
        for field in fields.chunks_exact(REGION).take_while(|field| field[0] != 0) {
            let (offset, length) = field.split_at(REGION / 2);
            let (offset, length) = (number(offset)?, number(length)?);
            if offset < end {
                return Err("the parts of its sparse map are out of order");
            }
            // Neither is more than 63 bits.
            end = offset + length;
            if end > size {
                return Err("its sparse map leads beyond its end");
            }
            total += length;
            if length > 0 {
                regions.push(Region { offset, length });
            }
        }
        if total != stored {
            return Err("its sparse map does not fit the bytes that are stored");
        }
        Ok(Self { regions, size })
    }

    /// How many parts it has.
    pub(crate) fn len(&self) -> usize {
        self.regions.len()
    }

    /// How many stored bytes lie before an offset of the file.
    pub(crate) fn stored_before(&self, offset: u64) -> u64 {
        let before = |region: &Region| offset.saturating_sub(region.offset).min(region.length);
        self.regions.iter().map(before).sum()
    }

    /// How many bytes from an offset on are of one kind, and whether they are stored.
    fn stretch(&self, offset: u64) -> (u64, bool) {
        let next = self
            .regions
            .partition_point(|region| region.offset + region.length <= offset);
        match self.regions.get(next) {
            Some(region) if region.offset <= offset => (region.offset + region.length - offset, true),
            Some(region) => (region.offset - offset, false),
            None => (self.size - offset, false),
        }
    }
}

/// Reads a sparse file, zeros for its holes.
pub(crate) struct Expanded<R> {
    map: Arc<Map>,
    /// Gives the stored bytes from the position on.
    stored: R,
    position: u64,
}

impl<R: Read> Expanded<R> {
    /// `stored` has to be where [`Map::stored_before`] the position says.
    pub(crate) fn new(map: Arc<Map>, stored: R, position: u64) -> Self {
        Self {
            map,
            stored,
            position,
        }
    }
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (left, is_stored) = self.map.stretch(self.position);
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = if is_stored {
            self.stored.read(&mut buffer[..wanted])?
        } else {
            buffer[..wanted].fill(0);
            wanted
        };
        self.position += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn octal(field: &[u8]) -> Result<u64, &'static str> {
        let text = std::str::from_utf8(field).map_err(|_| "not text")?;
        u64::from_str_radix(text.trim(), 8).map_err(|_| "not octal")
    }

    fn map(regions: &[(u64, u64)], size: u64, stored: u64) -> Result<Map, &'static str> {
        let mut fields: Vec<u8> = regions
            .iter()
            .flat_map(|(offset, length)| format!("{offset:011o} {length:011o} ").into_bytes())
            .collect();
        fields.extend_from_slice(&[0; 2 * REGION]);
        Map::new(&fields, size, stored, octal)
    }

    #[test]
    fn a_map_that_contradicts_itself_is_refused() {
        type Regions = &'static [(u64, u64)];
        let rows: [(Regions, u64, u64, Option<&str>); 9] = [
            (&[], 0, 0, None),
            (&[], 10, 0, None),
            (&[(0, 4), (8, 2)], 10, 6, None),
            (&[(4, 2), (10, 0)], 10, 2, None),
            (&[(8, 2), (0, 4)], 10, 6, Some("out of order")),
            (&[(0, 4), (3, 2)], 10, 6, Some("out of order")),
            (&[(8, 3)], 10, 3, Some("beyond its end")),
            (&[(0, 4)], 10, 5, Some("does not fit")),
            (&[], 10, 1, Some("does not fit")),
        ];
        for (regions, size, stored, expected) in rows {
            let result = map(regions, size, stored);
            match expected {
                None => assert!(result.is_ok(), "{regions:?}: {result:?}"),
                Some(expected) => assert!(result.unwrap_err().contains(expected), "{regions:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn a_file_reads_the_same_from_any_offset(
            parts in proptest::collection::vec((0_u64..5, 0_u64..5), 0..8),
            from in 0_u64..100,
        ) {
            let (mut regions, mut whole, mut stored) = (Vec::new(), Vec::new(), Vec::new());
            for (hole, length) in parts {
                whole.resize(whole.len() + usize::try_from(hole).unwrap(), 0);
                regions.push((whole.len() as u64, length));
                let bytes: Vec<u8> = (0..length).map(|n| u8::try_from(n + 1).unwrap()).collect();
                whole.extend_from_slice(&bytes);
                stored.extend_from_slice(&bytes);
            }
            whole.extend_from_slice(&[0; 3]);
            let map = map(&regions, whole.len() as u64, stored.len() as u64).unwrap();
            let from = from.min(whole.len() as u64);
            let start = usize::try_from(map.stored_before(from)).unwrap();
            let mut read = Vec::new();
            Expanded::new(Arc::new(map), &stored[start..], from).read_to_end(&mut read).unwrap();
            prop_assert_eq!(&read, &whole[usize::try_from(from).unwrap()..]);
        }
    }
}
