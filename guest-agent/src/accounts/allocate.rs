//! Which number is the next, as useradd and groupadd choose.

use super::login_defs::{Ids, Ranges};
use super::table::Table;

/// The next number in a range: after the highest that is used, or for the system's own before the
/// lowest; `wanted` if nobody has it.
pub fn id(table: &Table, ids: Ids, wanted: Option<u32>) -> Option<u32> {
    let range = ids.min..=ids.max;
    if let Some(wanted) = wanted
        && range.contains(&wanted)
        && !table.has_number(wanted)
    {
        return Some(wanted);
    }
    let used = || table.numbers(2).filter(|number| range.contains(number));
    let next = match ids.downwards {
        true => used().min().map_or(Some(ids.max), |low| low.checked_sub(1)),
        false => used()
            .max()
            .map_or(Some(ids.min), |high| high.checked_add(1)),
    };
    let free = |number: &u32| range.contains(number) && !table.has_number(*number);
    next.filter(free).or_else(|| match ids.downwards {
        true => range.clone().rev().find(free),
        false => range.clone().find(free),
    })
}

/// The first range that nobody has: where it starts and how many numbers it has.
pub fn range(table: &Table, ranges: Ranges) -> Option<(u64, u64)> {
    let taken = table.rows().filter_map(|row| {
        let start: u64 = row.get(1)?.parse().ok()?;
        Some((start, row.get(2)?.parse().ok()?))
    });
    let mut taken: Vec<(u64, u64)> = taken.collect();
    taken.sort_unstable();
    let mut start = ranges.min;
    for (other, count) in taken {
        if other >= start.saturating_add(ranges.count) {
            break;
        }
        start = start.max(other.saturating_add(count));
    }
    let end = start.checked_add(ranges.count)?;
    (ranges.count > 0 && end - 1 <= ranges.max).then_some((start, ranges.count))
}
