//! Which plain texts a YAML reader takes for something other than text, and how numbers are written.

use serde_json::Number;

/// Returns whether YAML 1.1 as `PyYAML` resolves it, or the core schema of YAML 1.2, reads a plain `text` as null, a truth value, a
/// number, a time, or one of YAML 1.1's two special keys.
pub(super) fn means_something_else(text: &str) -> bool {
    is_word(text) || is_integer(text) || is_float(text) || is_base_60(text) || is_time(text)
}

/// Returns whether a text is a word of YAML's: in lower case, in capitals, or with a capital first.
pub(super) fn is_word(text: &str) -> bool {
    const WORDS: [&str; 9] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    const SPECIAL: [&str; 4] = ["", "~", "=", "<<"];
    if text.len() > 5 {
        return false;
    }
    let rest = text.get(1..).unwrap_or_default();
    let is_spelled = text.bytes().all(|byte| byte.is_ascii_uppercase())
        || rest.bytes().all(|byte| byte.is_ascii_lowercase());
    SPECIAL.contains(&text)
        || (is_spelled && WORDS.iter().any(|word| word.eq_ignore_ascii_case(text)))
}

fn unsigned(text: &str) -> &str {
    text.strip_prefix(['-', '+']).unwrap_or(text)
}

/// At least one byte, and all of them pass.
fn all(text: &str, pass: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(pass)
}

fn is_integer(text: &str) -> bool {
    let digits = unsigned(text);
    let in_base = |prefix: &str, pass: fn(u8) -> bool| {
        let digits = digits.strip_prefix(prefix);
        digits.is_some_and(|digits| all(digits, |byte| byte == b'_' || pass(byte)))
    };
    let decimal = digits.starts_with(|first: char| first.is_ascii_digit())
        && all(digits, |byte| byte == b'_' || byte.is_ascii_digit());
    // With a leading zero YAML 1.1 knows octal digits alone, and YAML 1.2 any digits, but no underscores.
    let zero = digits.len() > 1 && digits.starts_with('0');
    let eights = digits.contains(['8', '9']) && digits.contains('_');
    (decimal && !(zero && eights))
        || in_base("0x", |byte| byte.is_ascii_hexdigit())
        || in_base("0b", |byte| matches!(byte, b'0' | b'1'))
        || in_base("0o", |byte| matches!(byte, b'0'..=b'7'))
}

fn is_float(text: &str) -> bool {
    let body = unsigned(text);
    if [".inf", ".Inf", ".INF"].contains(&body) || [".nan", ".NaN", ".NAN"].contains(&text) {
        return true;
    }
    let (mantissa, exponent) = match body.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (body, None),
    };
    let is_signed = exponent.is_none_or(|digits| digits.starts_with(['-', '+']));
    let exponent =
        exponent.is_none_or(|digits| all(unsigned(digits), |byte| byte.is_ascii_digit()));
    // YAML 1.1 allows underscores and wants a point and a sign, YAML 1.2 the reverse.
    let underscored = mantissa.contains('_') && !(mantissa.contains('.') && is_signed);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let whole_is_digits = whole.starts_with(|first: char| first.is_ascii_digit())
        && all(whole, |byte| byte == b'_' || byte.is_ascii_digit());
    let fraction_is_digits = fraction
        .bytes()
        .all(|byte| byte == b'_' || byte.is_ascii_digit());
    let no_whole = whole.is_empty() && fraction.starts_with(|first: char| first.is_ascii_digit());
    exponent && !underscored && fraction_is_digits && (whole_is_digits || no_whole)
}

/// `12:30:45` and `1:30.5`: numbers to the base 60 in YAML 1.1.
fn is_base_60(text: &str) -> bool {
    let body = unsigned(text);
    let (body, is_float) = match body.split_once('.') {
        Some((body, fraction))
            if fraction
                .bytes()
                .all(|byte| byte == b'_' || byte.is_ascii_digit()) =>
        {
            (body, true)
        }
        Some(_) => return false,
        None => (body, false),
    };
    let Some((first, rest)) = body.split_once(':') else {
        return false;
    };
    let leads = |digit: char| digit.is_ascii_digit() && (is_float || digit != '0');
    let sixtieth = |part: &str| match part.as_bytes() {
        [digit] => digit.is_ascii_digit(),
        [tens, digit] => (b'0'..=b'5').contains(tens) && digit.is_ascii_digit(),
        _ => false,
    };
    first.starts_with(leads)
        && all(first, |byte| byte == b'_' || byte.is_ascii_digit())
        && rest.split(':').all(sixtieth)
}

/// `2026-01-31`, or such a day with a time of day after `T` or spaces.
fn is_time(text: &str) -> bool {
    let mut rest = text;
    let mut digits = |from: usize, to: usize, end: &str| {
        let count = rest.bytes().take_while(u8::is_ascii_digit).count();
        let after = rest.get(count..).and_then(|rest| rest.strip_prefix(end));
        if let Some(after) = after {
            rest = after;
        }
        after.is_some() && (from..=to).contains(&count)
    };
    if !(digits(4, 4, "-") && digits(1, 2, "-") && digits(1, 2, "")) {
        return false;
    }
    if rest.is_empty() {
        return text.len() == "2026-01-31".len();
    }
    let clock = rest.strip_prefix(['T', 't']).or_else(|| {
        let clock = rest.trim_start_matches([' ', '\t']);
        (clock != rest).then_some(clock)
    });
    clock.is_some_and(is_clock)
}

/// `12:30:45`, then perhaps a fraction and a zone.
fn is_clock(text: &str) -> bool {
    let mut parts = text.splitn(3, ':');
    let (Some(hours), Some(minutes), Some(rest)) = (parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is_digits = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let (Some(seconds), Some(rest)) = (rest.get(..2), rest.get(2..)) else {
        return false;
    };
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|digit: char| digit.is_ascii_digit()),
        None => rest,
    };
    let zone = zone.trim_start_matches([' ', '\t']);
    let is_zone = match zone.strip_prefix(['-', '+']) {
        Some(offset) => match offset.split_once(':') {
            Some((hours, minutes)) => is_digits(hours, 1..=2) && is_digits(minutes, 2..=2),
            None => is_digits(offset, 1..=2),
        },
        None => zone == "Z" || (zone.is_empty() && !rest.ends_with([' ', '\t'])),
    };
    is_digits(hours, 1..=2) && is_digits(minutes, 2..=2) && is_digits(seconds, 2..=2) && is_zone
}

/// A number in the notation that both YAML versions read: an exponent has a point before it and a sign.
pub(super) fn number(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => float_text(float),
        _ => number.to_string(),
    }
}

/// The shortest digits that read back equal, with an exponent outside of 1e-4 to 1e16.
fn float_text(float: f64) -> String {
    let text = format!("{float:e}");
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return text;
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) || float == 0.0 {
        return format!("{float:?}");
    }
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}{point}e{sign}{:02}", exponent.abs())
}
