//! Text between two systems that show it differently: Sentinel renders HTML (and takes Markdown), Defender shows plain
//! text. Comments come from strangers, so nothing here trusts its input: markup that is broken is text, and characters
//! that could make a line read as something else are dropped.

/// Tags that are taken for markup. Anything else between angle brackets (`<ann@contoso.com>`, `List<String>`) is text.
const TAGS: &[&str] = &[
    "a",
    "abbr",
    "article",
    "b",
    "blockquote",
    "body",
    "br",
    "center",
    "code",
    "col",
    "colgroup",
    "dd",
    "del",
    "details",
    "div",
    "dl",
    "dt",
    "em",
    "figure",
    "font",
    "footer",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "header",
    "hr",
    "html",
    "i",
    "img",
    "ins",
    "kbd",
    "label",
    "li",
    "link",
    "mark",
    "meta",
    "ol",
    "p",
    "pre",
    "q",
    "s",
    "samp",
    "script",
    "section",
    "small",
    "span",
    "strike",
    "strong",
    "style",
    "sub",
    "summary",
    "sup",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "title",
    "tr",
    "tt",
    "u",
    "ul",
    "var",
];
/// Tags that begin and end a line.
const LINES: &[&str] = &[
    "article",
    "blockquote",
    "body",
    "center",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "figure",
    "footer",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "html",
    "li",
    "ol",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "title",
    "tr",
    "ul",
];
/// Named references that occur in comments; the others stay as they are, and can be read.
const NAMED: &[(&str, char)] = &[
    ("amp", '&'),
    ("lt", '<'),
    ("gt", '>'),
    ("quot", '"'),
    ("apos", '\''),
    ("nbsp", ' '),
    ("ndash", '–'),
    ("mdash", '—'),
    ("hellip", '…'),
    ("lsquo", '‘'),
    ("rsquo", '’'),
    ("ldquo", '“'),
    ("rdquo", '”'),
    ("laquo", '«'),
    ("raquo", '»'),
    ("bull", '•'),
    ("middot", '·'),
    ("copy", '©'),
    ("reg", '®'),
    ("trade", '™'),
    ("euro", '€'),
    ("auml", 'ä'),
    ("ouml", 'ö'),
    ("uuml", 'ü'),
    ("Auml", 'Ä'),
    ("Ouml", 'Ö'),
    ("Uuml", 'Ü'),
    ("szlig", 'ß'),
    ("eacute", 'é'),
    ("egrave", 'è'),
    ("agrave", 'à'),
    ("ccedil", 'ç'),
];
/// The longest reference that is looked for, `&` and `;` aside.
const LONGEST_REFERENCE: usize = 10;

/// How long both services count a text: in UTF-16 code units.
pub fn units(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

/// The beginning of a text, of at most `most` UTF-16 code units, never half a character.
pub fn cut_to_units(text: &str, most: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += c.len_utf16();
        if used > most {
            return &text[..at];
        }
    }
    text
}

/// Drops control characters other than line breaks and tabs, and the characters that reorder what follows them: with
/// those a comment could show another author's name in our frame. Line breaks become `\n`.
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut after_return = false;
    for c in text.chars() {
        match c {
            '\r' => clean.push('\n'),
            '\n' if after_return => {}
            '\n' | '\t' => clean.push(c),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            _ if c.is_control() => {}
            _ => clean.push(c),
        }
        after_return = c == '\r';
    }
    clean
}

/// All white space as single spaces, none at the ends: what two texts that say the same have in common.
pub fn collapse(text: &str) -> String {
    let mut words = text.split_whitespace();
    let mut collapsed = words.next().unwrap_or_default().to_owned();
    for word in words {
        collapsed.push(' ');
        collapsed.push_str(word);
    }
    collapsed
}

/// Escapes what HTML would take for markup.
pub fn escape_html(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match escaped(c) {
            Some(reference) => html.push_str(reference),
            None => html.push(c),
        }
    }
    html
}

/// Plain text as HTML that shows it: escaped, with its line breaks, without the characters that [`clean`] drops.
pub fn plain_to_html(text: &str) -> String {
    escape_html(&clean(text)).replace('\n', "<br>")
}

/// What one character of clean text takes in [`plain_to_html`], in UTF-16 code units.
pub(crate) fn html_units(c: char) -> usize {
    match escaped(c) {
        Some(reference) => reference.len(),
        None if c == '\n' => "<br>".len(),
        None => c.len_utf16(),
    }
}

fn escaped(c: char) -> Option<&'static str> {
    Some(match c {
        '&' => "&amp;",
        '<' => "&lt;",
        '>' => "&gt;",
        '"' => "&quot;",
        '\'' => "&#39;",
        _ => return None,
    })
}

/// One piece of markup.
struct Tag<'a> {
    name: String,
    closing: bool,
    attributes: &'a str,
    /// Bytes from `<` to `>`.
    length: usize,
}

/// Reads the tag that `rest` begins with, if it does.
fn tag(rest: &str) -> Option<Tag<'_>> {
    let inner = rest.strip_prefix('<')?;
    let (closing, inner) = match inner.strip_prefix('/') {
        Some(inner) => (true, inner),
        None => (false, inner),
    };
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric())?;
    let name = inner[..end].to_ascii_lowercase();
    let follows = inner[end..].chars().next()?;
    if !(follows.is_ascii_whitespace() || follows == '>' || follows == '/') || !TAGS.contains(&name.as_str())
    {
        return None;
    }
    // `a<b && c>d` is no tag: attributes begin with a name.
    let attributes = inner[end..].trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '/');
    if !attributes.starts_with(|c: char| c.is_ascii_alphabetic() || c == '>') {
        return None;
    }
    let mut quote = None;
    for (at, c) in inner[end..].char_indices() {
        match (quote, c) {
            (None, '>') => {
                let attributes = &inner[end..end + at];
                let length = rest.len() - inner.len() + end + at + 1;
                return Some(Tag { name, closing, attributes, length });
            }
            // A tag inside a tag: the first was never closed, so it is text.
            (None, '<') => return None,
            // Only a value is quoted: an apostrophe elsewhere is one.
            (None, '"' | '\'') if inner[end..end + at].trim_end().ends_with('=') => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            _ => {}
        }
    }
    None
}

/// The value of an attribute, its references decoded.
fn attribute(attributes: &str, name: &str) -> Option<String> {
    let lower = attributes.to_ascii_lowercase();
    for (at, _) in lower.match_indices(name) {
        let alone =
            lower[..at].ends_with(|c: char| c.is_ascii_whitespace() || c == '/' || c == '"' || c == '\'');
        let Some(value) = attributes[at + name.len()..].trim_start().strip_prefix('=').filter(|_| alone)
        else {
            continue;
        };
        let value = value.trim_start();
        let value = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => value[1..].split(quote).next(),
            _ => value.split(|c: char| c.is_ascii_whitespace()).next(),
        };
        return value.map(decode);
    }
    None
}

fn decode(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        decoded.push_str(&rest[..at]);
        rest = &rest[at..];
        match reference(rest) {
            Some((c, length)) => {
                decoded.push(c);
                rest = &rest[length..];
            }
            None => {
                decoded.push('&');
                rest = &rest[1..];
            }
        }
    }
    decoded.push_str(rest);
    decoded
}

/// The character that `rest` begins with a reference to, and the bytes of the reference.
fn reference(rest: &str) -> Option<(char, usize)> {
    let inner = rest.strip_prefix('&')?;
    let end = inner.bytes().take(LONGEST_REFERENCE + 1).position(|byte| byte == b';')?;
    let name = &inner[..end];
    let c = match name.strip_prefix('#') {
        Some(number) => {
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            match char::from_u32(code)? {
                '\u{a0}' => ' ',
                c => c,
            }
        }
        None => NAMED.iter().find(|(known, _)| *known == name)?.1,
    };
    Some((c, end + 2))
}

struct Writer {
    out: String,
    /// Text without any markup keeps its line breaks; in markup they are spaces.
    verbatim: bool,
}

impl Writer {
    fn at_line_start(&self) -> bool {
        self.out.is_empty() || self.out.ends_with('\n')
    }

    fn new_line(&mut self) {
        while self.out.ends_with(' ') {
            self.out.pop();
        }
        if !self.at_line_start() {
            self.out.push('\n');
        }
    }

    fn text(&mut self, c: char) {
        if self.verbatim || !c.is_whitespace() {
            self.out.push(c);
        } else if !self.at_line_start() && !self.out.ends_with(' ') {
            self.out.push(' ');
        }
    }
}

/// HTML as plain text: lines where HTML shows lines, dashes before list items, addresses after links, references
/// decoded; scripts and styles left out. Text without markup stays as it is. Broken markup is kept as text.
pub fn html_to_plain(html: &str) -> String {
    let any = html.match_indices('<').any(|(at, _)| tag(&html[at..]).is_some());
    let mut writer = Writer { out: String::with_capacity(html.len()), verbatim: !any };
    // The addresses of open links, and where their text began.
    let mut links: Vec<(Option<String>, usize)> = Vec::new();
    let mut rest = html;
    while let Some(c) = rest.chars().next() {
        if c == '&'
            && let Some((decoded, length)) = reference(rest)
        {
            // A decoded character is shown, whatever it is.
            if decoded == ' ' {
                writer.text(' ')
            } else {
                writer.out.push(decoded)
            }
            rest = &rest[length..];
            continue;
        }
        if c == '<' {
            if any
                && let Some(comment) = rest.strip_prefix("<!--")
                && let Some(end) = comment.find("-->")
            {
                rest = &comment[end + 3..];
                continue;
            }
            if let Some(tag) = tag(rest) {
                rest = &rest[tag.length..];
                rest = apply(&mut writer, &mut links, &tag, rest);
                continue;
            }
        }
        writer.text(c);
        rest = &rest[c.len_utf8()..];
    }
    tidy(&clean(&writer.out))
}

/// What a tag does to the text; gives what is left to read.
fn apply<'a>(
    writer: &mut Writer,
    links: &mut Vec<(Option<String>, usize)>,
    tag: &Tag<'_>,
    rest: &'a str,
) -> &'a str {
    match (tag.name.as_str(), tag.closing) {
        ("script" | "style" | "head", false) => {
            let end = format!("</{}", tag.name);
            let lower = rest.to_ascii_lowercase();
            let Some(at) = lower.find(&end) else { return "" };
            return rest[at..].split_once('>').map_or("", |(_, after)| after);
        }
        ("br", _) => {
            while writer.out.ends_with(' ') {
                writer.out.pop();
            }
            writer.out.push('\n');
        }
        ("li", false) => {
            writer.new_line();
            writer.out.push_str("- ");
        }
        ("td" | "th", false) if !writer.at_line_start() => writer.out.push_str(" | "),
        ("pre", closing) => {
            writer.new_line();
            writer.verbatim = !closing;
        }
        ("img", false) => {
            if let Some(alt) = attribute(tag.attributes, "alt").filter(|alt| !alt.trim().is_empty()) {
                writer.out.push_str(&format!("[{}]", alt.trim()));
            }
        }
        ("a", false) => links.push((attribute(tag.attributes, "href"), writer.out.len())),
        ("a", true) => {
            if let Some((Some(address), from)) = links.pop() {
                let address = address.trim();
                let shown = writer.out.get(from..).unwrap_or_default().trim();
                let known = ["http:", "https:", "mailto:"]
                    .iter()
                    .any(|scheme| address.to_ascii_lowercase().starts_with(scheme));
                if known && shown.is_empty() {
                    writer.out.push_str(address);
                } else if known && address.trim_start_matches("mailto:") != shown {
                    writer.out.push_str(&format!(" ({address})"));
                }
            }
        }
        (name, _) if LINES.contains(&name) => writer.new_line(),
        _ => {}
    }
    rest
}

/// Without white space at the ends of lines and of the text, and with one empty line at most in a row.
fn tidy(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len());
    let mut empty = 0;
    for line in text.lines() {
        let line = line.trim_end();
        empty = if line.is_empty() { empty + 1 } else { 0 };
        if empty < 2 && !(tidy.is_empty() && line.is_empty()) {
            tidy.push_str(line);
            tidy.push('\n');
        }
    }
    tidy.truncate(tidy.trim_end().len());
    tidy
}

/// The Markdown that people write in comments, made readable where nobody renders it: `[text](url)` becomes
/// `text (url)`, `**bold**` loses its stars, headings their marks, code fences their fences. Everything else is
/// readable as it stands, and single `*` and `_` are left alone: they are in file names and patterns.
pub fn markdown_to_plain(text: &str) -> String {
    let mut plain = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            plain.push(line.to_owned());
            continue;
        }
        let hashes = line.bytes().take_while(|byte| *byte == b'#').count();
        let line = match line[hashes..].strip_prefix(' ') {
            Some(heading) if (1..=6).contains(&hashes) => heading,
            _ => line,
        };
        plain.push(unpaired("__", &unpaired("**", &links(line))));
    }
    tidy(&plain.join("\n"))
}

/// Drops `mark` where it stands in a pair around something that touches it on both ends.
fn unpaired(mark: &str, line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(mark) {
        let inner = &rest[at + mark.len()..];
        let word_before = rest[..at].ends_with(char::is_alphanumeric);
        match inner.find(mark) {
            Some(end)
                if end > 0
                    && !word_before
                    && !inner[..end].starts_with(char::is_whitespace)
                    && !inner[..end].ends_with(char::is_whitespace)
                    && !inner[end + mark.len()..].starts_with(char::is_alphanumeric) =>
            {
                out.push_str(&rest[..at]);
                out.push_str(&inner[..end]);
                rest = &inner[end + mark.len()..];
            }
            _ => {
                out.push_str(&rest[..at + mark.len()]);
                rest = inner;
            }
        }
    }
    out.push_str(rest);
    out
}

fn links(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('[') {
        let inner = &rest[at + 1..];
        let link = inner.split_once("](").and_then(|(text, after)| {
            let (address, after) = after.split_once(')')?;
            let plain =
                !text.contains(['[', ']']) && !address.is_empty() && !address.contains(char::is_whitespace);
            plain.then_some((text, address, after))
        });
        match link {
            Some((text, address, after)) => {
                out.push_str(rest[..at].strip_suffix('!').unwrap_or(&rest[..at]));
                if text.is_empty() || text == address {
                    out.push_str(address);
                } else {
                    out.push_str(&format!("{text} ({address})"));
                }
                rest = after;
            }
            None => {
                out.push_str(&rest[..=at]);
                rest = inner;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_lines() {
        let cases = [
            ("<p>one</p><p>two<br>three</p>", "one\ntwo\nthree"),
            ("<div>a</div>\n  <div>b   c</div>", "a\nb c"),
            ("<ul><li>x</li><li>y</li></ul>", "- x\n- y"),
            ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a | b\nc"),
            (
                "see <a href=\"https://x.y/?a=1&amp;b=2\" target=_blank>this</a>.",
                "see this (https://x.y/?a=1&b=2).",
            ),
            ("<a href='https://x.y'>https://x.y</a>", "https://x.y"),
            ("<a href=javascript:alert(1)>press</a>", "press"),
            ("a<script>evil('</p>')</script>b<STYLE>p{}</STYLE>c", "abc"),
            ("a<script>never closed", "a"),
            ("x<!-- no --><b>y</b>", "xy"),
            ("<pre>a\n  b</pre>c", "a\n  b\nc"),
            ("<h2>Head</h2>text", "Head\ntext"),
            (
                "&lt;b&gt; &amp;amp; &#65;&#x42;&nbsp;&unknown; &#xD800; &",
                "<b> &amp; AB &unknown; &#xD800; &",
            ),
            ("<p>it's <b title='a > b'>here</b></p>", "it's here"),
        ];
        for (html, plain) in cases {
            assert_eq!(html_to_plain(html), plain, "{html}");
        }
    }

    #[test]
    fn text_that_only_looks_like_markup_survives() {
        for text in [
            "a < b",
            "a <b",
            "<",
            "x<",
            "i <3 you & me",
            "Ann <ann@contoso.com>",
            "List<String>",
            "</",
            "<a",
            "<p <p",
            "line one\nline two\n\n  indented",
            "if (a<b && c>d)",
            "<!-- ",
        ] {
            assert_eq!(html_to_plain(text), text.trim_end(), "{text}");
        }
    }

    #[test]
    fn what_could_deceive_is_dropped() {
        assert_eq!(clean("a\u{202e}b\u{2066}c\u{0}d\u{7}\te\r\nf\rg\u{85}"), "abcd\te\nf\ng");
        assert_eq!(html_to_plain("a&#x202e;b&#0;c"), "abc");
        assert_eq!(plain_to_html("<img src=x onerror=\"y\">\n'&'"), {
            "&lt;img src=x onerror=&quot;y&quot;&gt;<br>&#39;&amp;&#39;"
        });
    }

    #[test]
    fn markdown_is_left_readable() {
        let cases = [
            ("see [the *page*](https://x.y) now", "see the *page* (https://x.y) now"),
            ("![shot](https://x/y.png)", "shot (https://x/y.png)"),
            ("**bold** and __too__, a ** b, x__init__y", "bold and too, a ** b, x__init__y"),
            ("# Head\n#tag\n```kql\nA | where **x**\n```\nend", "Head\n#tag\nA | where **x**\nend"),
            ("[ls:0a1b2c3d/s00] [x] (y) a[0](1 2)", "[ls:0a1b2c3d/s00] [x] (y) a[0](1 2)"),
        ];
        for (markdown, plain) in cases {
            assert_eq!(markdown_to_plain(markdown), plain, "{markdown}");
        }
    }

    #[test]
    fn units_are_of_utf_16_and_no_character_is_halved() {
        assert_eq!(units("aé😀"), 4);
        assert_eq!(cut_to_units("aé😀x", 3), "aé");
        assert_eq!(cut_to_units("aé😀x", 4), "aé😀");
        assert_eq!(cut_to_units("ab", 9), "ab");
        for c in ['a', '&', '<', '>', '"', '\'', '\n', '😀'] {
            assert_eq!(html_units(c), units(&plain_to_html(&c.to_string())), "{c:?}");
        }
    }
}
