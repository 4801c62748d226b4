//! Sizes as operators type them.

/// A size in bytes, with a unit of powers of ten (`GB`) or of two (`GiB`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        const UNITS: [(&str, u64); 9] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("kB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("B", 1),
        ];
        let with_unit = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
        let (digits, factor) = with_unit.unwrap_or((text, 1));
        let (whole, part) = digits
            .trim_end()
            .split_once('.')
            .unwrap_or((digits.trim_end(), "0"));
        let read = || {
            let scale = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
            let digits: u64 = format!("{whole}{part}").parse().ok()?;
            let bytes = u128::from(digits) * u128::from(factor) / u128::from(scale);
            u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
        };
        read()
            .map(Size)
            .ok_or_else(|| "it should be a size such as 4GiB or 4.7GB".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_both_kinds() {
        let rows = [
            ("512", Some(512)),
            ("4GiB", Some(4 << 30)),
            ("4.7GB", Some(4_700_000_000)),
            ("1.5 MiB", Some(3 << 19)),
            ("700B", Some(700)),
            ("0GB", None),
            ("-1GB", None),
            ("GB", None),
            ("1.2.3MB", None),
            ("99999999999TB", None),
            ("1.00000000000000000000001MB", None),
        ];
        for (text, wanted) in rows {
            assert_eq!(text.parse::<Size>().ok(), wanted.map(Size), "{text}");
        }
    }
}
