//! Sizes and times as people write them.

use std::time::Duration;

/// One kibibyte.
pub const KIB: u64 = 1 << 10;
/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;
/// One tebibyte.
pub const TIB: u64 = 1 << 40;

/// Reads `512`, `4k`, `1G`, `1GiB` (powers of 1024) or `1GB` (powers of 1000).
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => KIB,
        "m" | "mib" => MIB,
        "g" | "gib" => GIB,
        "t" | "tib" => TIB,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    let mut total = whole.checked_mul(factor)?;
    if !fraction.is_empty() {
        let scale = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor) / u128::from(scale);
        total = total.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(total)
}

/// Writes a size with one decimal and a binary unit.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];
    for (name, size) in UNITS {
        if bytes >= size {
            let tenths = u128::from(bytes) * 10 / u128::from(size);
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// Seconds of the units of time, the longest first.
const TIMES: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

/// Reads `90` (seconds), `90s`, `15m`, `24h` or `7d`, and sums of those, as `1d12h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = 0u64;
    loop {
        let digits_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, unit) = rest.split_at(digits_end);
        let unit_end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, next) = unit.split_at(unit_end);
        let factor = match unit {
            // Only alone.
            "" if digits_end == text.trim().len() => 1,
            unit => TIMES.into_iter().find(|(name, _)| *name == unit)?.1,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        if next.is_empty() {
            return Some(Duration::from_secs(total));
        }
        rest = next;
    }
}

/// Writes a time in its two largest units.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let place = TIMES.iter().position(|(_, size)| seconds >= *size).unwrap_or(TIMES.len() - 1);
    let (name, size) = TIMES[place];
    let mut text = format!("{}{name}", seconds / size);
    if let Some((name, smaller)) = TIMES.get(place + 1) {
        let more = seconds % size / smaller;
        if more > 0 {
            text += &format!("{more}{name}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("2G", 2 * GIB),
            ("2GiB", 2 * GIB),
            ("2GB", 2_000_000_000),
            ("1.5G", GIB + GIB / 2),
            (" 1 m ", MIB),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for bad in ["", "G", "-1", "1X", "99999999999T", "1.x"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
        assert_eq!(format_size(1536), "1.5 KiB");
        assert_eq!(format_size(10), "10 B");
    }

    #[test]
    fn times_as_people_write_them() {
        let cases = [
            ("0", 0),
            ("90", 90),
            ("15m", 900),
            ("24h", 86_400),
            ("7d", 604_800),
            ("1d12h", 129_600),
            (" 2s ", 2),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "h", "-1", "1x", "1h30", "99999999999999999999d", "1.5h", "1h-2s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (90, "1m30s"), (86_400, "1d"), (90_061, "1d1h")]
        {
            assert_eq!(format_duration(Duration::from_secs(seconds)), text);
        }
    }
}
