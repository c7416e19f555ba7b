//! Kubernetes quantities (`k8s.io/apimachinery/pkg/api/resource`): a decimal number and a suffix,
//! binary (`Ki` ... `Ei`), decimal (`n` ... `E`) or an exponent (`e3`).

/// Reads a quantity as a whole number, fractions rounded up as Kubernetes' `Value()` does; `None`
/// where it is no quantity, is negative, or exceeds 64 bits.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(end)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let digits: u128 = match format!("{whole}{fraction}").trim_start_matches('0') {
        "" => 0,
        digits => digits.parse().ok()?,
    };
    let (numerator, denominator) = scale(suffix)?;
    let denominator = denominator.checked_mul(10u128.checked_pow(fraction.len() as u32)?)?;
    let value = digits.checked_mul(numerator)?.div_ceil(denominator);
    u64::try_from(value).ok()
}

/// A suffix as numerator and denominator.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10u128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, want) in [
            ("1024M", Some(1_024_000_000)),
            ("1Gi", Some(1 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("0.5", Some(1)),
            ("100m", Some(1)),
            ("2500m", Some(3)),
            ("1e3", Some(1000)),
            ("1E3", Some(1000)),
            ("2E", Some(2_000_000_000_000_000_000)),
            ("5e-1", Some(1)),
            ("128974848", Some(128_974_848)),
            ("+1k", Some(1000)),
            (".5Ki", Some(512)),
            ("0", Some(0)),
            ("", None),
            (".", None),
            ("-1", None),
            ("1 Gi", None),
            ("1GB", None),
            ("1K", None),
            ("1.2.3", None),
            ("99999999999E", None),
            ("1e99", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }
}
