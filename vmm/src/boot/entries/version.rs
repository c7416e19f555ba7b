//! Which of two versions is the newer (UAPI.10, version format specification).

use std::cmp::Ordering;

/// Compares two versions, or names with versions in them.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    let (mut a, mut b) = (left.as_bytes(), right.as_bytes());
    loop {
        a = skip_separators(a);
        b = skip_separators(b);
        // What a tilde precedes is older than nothing; a longer version newer than its start.
        match mark(&mut a, &mut b, b'~') {
            Ordering::Equal => {}
            order => return order,
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        for separator in [b'-', b'^', b'.'] {
            match mark(&mut a, &mut b, separator) {
                Ordering::Equal => {}
                order => return order,
            }
        }
        let digits = |s: &[u8]| s.first().is_some_and(u8::is_ascii_digit);
        let order = if digits(a) || digits(b) {
            number(&mut a, &mut b)
        } else {
            letters(&mut a, &mut b)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Drops what stands for nothing.
fn skip_separators(text: &[u8]) -> &[u8] {
    let counts = |b: &u8| b.is_ascii_alphanumeric() || b"~-^.".contains(b);
    let skip = text.iter().position(counts).unwrap_or(text.len());
    text.get(skip..).unwrap_or_default()
}

/// Who has the mark here is the older, unless both have.
fn mark(a: &mut &[u8], b: &mut &[u8], mark: u8) -> Ordering {
    match (a.strip_prefix(&[mark]), b.strip_prefix(&[mark])) {
        (Some(rest_a), Some(rest_b)) => {
            (*a, *b) = (rest_a, rest_b);
            Ordering::Equal
        }
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

fn cut<'a>(text: &mut &'a [u8], belongs: fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|b| !belongs(b)).unwrap_or(text.len());
    let (head, rest) = text.split_at(end);
    *text = rest;
    head
}

fn number(a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    let value = |text: &mut &[u8]| {
        let digits = cut(text, u8::is_ascii_digit);
        let zeros = digits
            .iter()
            .position(|d| *d != b'0')
            .unwrap_or(digits.len());
        digits.get(zeros..).unwrap_or_default().to_vec()
    };
    let (a, b) = (value(a), value(b));
    a.len().cmp(&b.len()).then_with(|| a.cmp(&b))
}

fn letters(a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    cut(a, u8::is_ascii_alphabetic).cmp(cut(b, u8::is_ascii_alphabetic))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_in_the_order_in_which_they_are_released() {
        let sorted = [
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (i, older) in sorted.iter().enumerate() {
            for newer in &sorted[i + 1..] {
                assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
                assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
            }
        }
        assert_eq!(compare("6.1.0-9-amd64", "6.1.0-10-amd64"), Ordering::Less);
        assert_eq!(compare("01_2", "1+2"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn a_comparison_turned_round_is_turned_round(a in "[a-z0-9~^._-]{0,12}", b in "\\PC{0,12}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&b, &b), Ordering::Equal);
        }
    }
}
