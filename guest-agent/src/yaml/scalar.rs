//! What a plain scalar means (YAML 1.1, <https://yaml.org/type/>, as PyYAML's SafeLoader resolves it).

use super::Value;

/// The value of a scalar without quotes and without a tag.
pub fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    // Most scalars are words.
    if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return Value::Text(text.to_owned());
    }
    integer(text)
        .map(Value::Int)
        .or_else(|| float(text).map(Value::Float))
        .unwrap_or_else(|| Value::Text(text.to_owned()))
}

/// A sign and the rest.
fn signed(text: &str) -> (i64, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// A whole number: decimal, `0b`, `0x`, octal by a leading 0, or in base 60 with colons. One that
/// 64 bits do not hold stays text, which says the same.
pub fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = signed(text);
    let number = |digits: &str, base: u32| {
        let plain = digits.replace('_', "");
        let valid = !plain.is_empty() && plain.chars().all(|c| c.is_digit(base));
        valid.then(|| i64::from_str_radix(&plain, base).ok())?
    };
    let value = if let Some(digits) = digits.strip_prefix("0b") {
        number(digits, 2)
    } else if let Some(digits) = digits.strip_prefix("0x") {
        number(digits, 16)
    } else if digits == "0" {
        Some(0)
    } else if let Some(digits) = digits.strip_prefix('0') {
        number(digits, 8)
    } else if digits.contains(':') {
        sixty(digits)
    } else if digits.starts_with(|c: char| c.is_ascii_digit()) {
        number(digits, 10)
    } else {
        None
    };
    value?.checked_mul(sign)
}

fn sixty(digits: &str) -> Option<i64> {
    let mut parts = digits.split(':');
    let first: i64 = parts.next()?.replace('_', "").parse().ok()?;
    parts.try_fold(first, |sum, part| {
        let valid = (1..=2).contains(&part.len()) && part.chars().all(|c| c.is_ascii_digit());
        let part: i64 = valid.then(|| part.parse().ok())??;
        (part < 60).then(|| sum.checked_mul(60)?.checked_add(part))?
    })
}

fn float(text: &str) -> Option<f64> {
    let (sign, digits) = signed(text);
    let sign = sign as f64;
    match digits {
        ".inf" | ".Inf" | ".INF" => return Some(sign * f64::INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
        _ => {}
    }
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        // An exponent has its sign.
        Some((mantissa, exponent)) if exponent.starts_with(['+', '-']) => (mantissa, exponent),
        Some(_) => return None,
        None => (digits, "+0"),
    };
    let (whole, part) = mantissa.split_once('.')?;
    let plain = |digits: &str| digits.chars().all(|c| c.is_ascii_digit() || c == '_');
    let starts = whole.starts_with(|c: char| c.is_ascii_digit())
        || (whole.is_empty() && part.starts_with(|c: char| c.is_ascii_digit()));
    if !starts || !plain(whole) || !plain(part) {
        return None;
    }
    let text = format!(
        "{}.{}e{exponent}",
        if whole.is_empty() { "0" } else { whole },
        part
    );
    let value: f64 = text.replace('_', "").replace(".e", ".0e").parse().ok()?;
    Some(sign * value)
}
