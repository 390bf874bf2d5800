"""Lines of code, and prose that speaks of the same things in the same words; by programming language."""

from __future__ import annotations

from collections.abc import Iterator

_WORDS = ("count", "result", "line", "entry")
_TEXTS = {
    "python": """
def read_{w}(path):|The function reads the {w} from a path that it is given.
for {w} in sorted(values):|We go through the sorted values, one {w} at a time.
return {w} + 1|It gives back the {w}, one more than before.
import {w}|First the module named {w} has to be imported.
if {w} is None: raise ValueError|An error is raised where there is no {w} at all.
{w} = [x for x in items if x]|The {w} is a list of all items that are not empty.
print(f"{{{w}}}")|Finally the {w} is printed for whoever reads it.
with open({w}) as f: f.read()|The file is opened, and the {w} is read from it.
""",
    "c": """
int {w} = 0;|The {w} is a whole number, and it is zero at first.
#include <{w}.h>|A header for the {w} must be included above.
while ({w} > 0) {w}--;|As long as the {w} is positive, one is taken from it.
free({w});|Memory that the {w} has taken is given back here.
struct {w} *next;|A pointer leads from each {w} to the next one.
return {w} ? 0 : -1;|Zero is returned for a {w}, minus one without it.
static char {w}[64];|There is room for sixty-four characters in the {w}.
printf("%d", {w});|A decimal number is printed, which is the {w}.
""",
    "shell": """
echo "${w}" > out.txt|The {w} is written into a text file of that name.
grep -c {w} *.log|Every log is searched, and each {w} is counted.
rm -rf /tmp/{w}|Whatever is left of the {w} can be removed now.
export {w}=1|After this, other programs can see the {w}, too.
cat {w} | sort | uniq|Sort the {w} first, then leave out what comes twice.
if [ -f {w} ]; then exit 1; fi|Where the {w} is a file already, we stop.
ls -l {w}/|Show the long list of what the {w} holds.
tar xzf {w}.tar.gz|An archive with the {w} is unpacked in this place.
""",
    "sql": """
SELECT {w} FROM orders;|Of all orders we would like to see the {w}.
DELETE FROM {w} WHERE id = 3;|From the {w} the third record is deleted.
UPDATE {w} SET price = 0;|All prices in the {w} become zero by this change.
CREATE TABLE {w} (id INT);|A table for the {w} is created, with numbers in it.
INSERT INTO {w} VALUES (1, 2);|Two values, one and two, go into the {w}.
GROUP BY {w} HAVING n > 5;|Groups of each {w} are kept if they are large.
DROP INDEX {w};|Nobody needs the index of the {w} any more.
JOIN {w} ON a.id = b.id|The {w} is joined where both numbers agree.
""",
}


def code_and_prose() -> Iterator[dict[str, str]]:
    """Every line with every word; a line of code and the prose beside it are one group each."""
    for language, table in _TEXTS.items():
        for number, line in enumerate(table.strip().splitlines()):
            # The last bar parts them: a pipe of the shell is a bar as well.
            for label, text in zip(("code", "prose"), line.rsplit("|", 1), strict=True):
                for word in _WORDS:
                    yield {
                        "text": text.format(w=word),
                        "label": label,
                        "group": f"{language} {number} {label}",
                        "domain": language,
                    }
