//! Amounts: times, numbers, bytes.

use std::marker::PhantomData;
use std::time::Duration;

use serde_yaml::Value;

use super::{Kind, expects, got, quoted};

/// A time, such as `10m`.
pub(in crate::config) struct Time;

impl Kind for Time {
    type Setting = Duration;

    fn read(value: &Value) -> Result<Duration, String> {
        let text = value.as_str();
        text.and_then(|text| humantime::parse_duration(text).ok())
            .ok_or_else(|| got("a duration such as 10m or 20s", value))
    }

    fn show(setting: &Duration) -> Value {
        humantime::format_duration(*setting).to_string().into()
    }
}

/// A time between two repeated events, at least a second.
pub(in crate::config) struct Interval;

impl Kind for Interval {
    type Setting = Duration;

    fn read(value: &Value) -> Result<Duration, String> {
        const LEAST: Duration = Duration::from_secs(1);
        match Time::read(value)? {
            given if given >= LEAST => Ok(given),
            _ => Err(got(
                &format!("at least {}", humantime::format_duration(LEAST)),
                value,
            )),
        }
    }

    fn show(setting: &Duration) -> Value {
        Time::show(setting)
    }
}

/// A number of at least `LEAST`. A limit of 0 would refuse every bundle.
pub(in crate::config) struct Count<T, const LEAST: u64 = 1>(PhantomData<T>);

impl<T: Copy + TryFrom<u64> + TryInto<u64>, const LEAST: u64> Kind for Count<T, LEAST> {
    type Setting = T;

    fn read(value: &Value) -> Result<T, String> {
        let wanted = match LEAST {
            0 => "a number",
            _ => "a number above 0",
        };
        let enough = number(value).filter(|number| *number >= LEAST);
        enough
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| got(wanted, value))
    }

    fn show(setting: &T) -> Value {
        (*setting).try_into().unwrap_or(u64::MAX).into()
    }
}

/// Bytes above 0.
pub(in crate::config) struct Size;

impl Kind for Size {
    type Setting = u64;

    fn read(value: &Value) -> Result<u64, String> {
        bytes(value)
            .filter(|size| *size > 0)
            .ok_or_else(|| got("a size such as 8MiB", value))
    }

    fn show(setting: &u64) -> Value {
        let unit = UNITS
            .iter()
            .filter(|(_, shift)| setting.trailing_zeros() >= *shift)
            .max_by_key(|(_, shift)| *shift);
        let (unit, shift) = unit.expect("bytes divide everything");
        format!("{}{unit}", setting >> shift).into()
    }
}

/// Bytes per second. `null` or 0 means no limit.
pub(in crate::config) struct Rate;

impl Kind for Rate {
    type Setting = Option<u64>;

    fn read(value: &Value) -> Result<Option<u64>, String> {
        match value {
            Value::Null => Ok(None),
            value => Rate::checked(bytes(value)).ok_or_else(|| got(Rate::WANTED, value)),
        }
    }

    fn show(setting: &Option<u64>) -> Value {
        setting.as_ref().map_or(Value::Null, Size::show)
    }
}

impl Rate {
    const WANTED: &str = "bytes a second such as 50MiB, at least 1MiB, or 0 for no limit";
    /// Lowest rate, in bytes per second. With a slower rate a large blob would outlive its lease,
    /// and other importers would remove it.
    const SLOWEST: u64 = 1 << 20;

    /// Reads the rate of a flag.
    pub(in crate::config) fn of(text: &str) -> Result<Option<u64>, String> {
        Rate::checked(bytes_in(text)).ok_or_else(|| expects(Self::WANTED, quoted(text)))
    }

    fn checked(bytes: Option<u64>) -> Option<Option<u64>> {
        match bytes? {
            0 => Some(None),
            bytes => (bytes >= Self::SLOWEST).then_some(Some(bytes)),
        }
    }
}

/// Bytes, or a percentage of the disk.
pub(in crate::config) struct MinFree;

impl Kind for MinFree {
    type Setting = import::space::MinFree;

    fn read(value: &Value) -> Result<import::space::MinFree, String> {
        let read = match value.as_str().and_then(percent) {
            Some(percent) => Some(import::space::MinFree::Percent(percent)).filter(|_| percent <= 100),
            None => bytes(value).map(import::space::MinFree::Bytes),
        };
        read.ok_or_else(|| got("a size such as 5GiB or a part of the disk such as 10%", value))
    }

    fn show(setting: &import::space::MinFree) -> Value {
        match setting {
            import::space::MinFree::Bytes(0) => 0.into(),
            import::space::MinFree::Bytes(bytes) => Size::show(bytes),
            import::space::MinFree::Percent(percent) => format!("{percent}%").into(),
        }
    }
}

/// Binary logarithm of a window, which is a power of two. zstd has windows from 1 KiB to 2 GiB.
pub(in crate::config) struct Window;

impl Kind for Window {
    type Setting = u32;

    fn read(value: &Value) -> Result<u32, String> {
        let bytes = Size::read(value)?;
        match bytes.trailing_zeros() {
            log @ 10..=31 if bytes.is_power_of_two() => Ok(log),
            _ => Err(got("a power of two between 1KiB and 2GiB, such as 128MiB", value)),
        }
    }

    fn show(setting: &u32) -> Value {
        Size::show(&(1 << setting))
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

const UNITS: [(&str, u32); 5] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0)];

/// Reads bytes, with a unit or as a number.
fn bytes(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => bytes_in(text),
        other => number(other),
    }
}

fn bytes_in(text: &str) -> Option<u64> {
    let with_unit = || {
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))?;
        digits.trim_end().parse::<u64>().ok()?.checked_mul(1 << shift)
    };
    text.parse().ok().or_else(with_unit)
}

fn percent(text: &str) -> Option<u8> {
    text.strip_suffix('%')?.trim_end().parse().ok()
}
