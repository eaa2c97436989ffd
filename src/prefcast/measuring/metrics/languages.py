"""The language of a prompt, for slices: also of prompts of a few words.

The features of the built-in models have a test of their own, which must not change: the models were trained with it.
"""

from __future__ import annotations

import re

from prefcast.scorers.surface.features import Text

__all__ = ["prompt_language"]

_SAMPLE = 2000
_SCRIPTS = {
    "greek": re.compile("[\u0370-\u03ff\u1f00-\u1fff]"),
    "cyrillic": re.compile("[\u0400-\u04ff]"),
    "arabic": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "hebrew": re.compile("[\u0590-\u05ff]"),
    "indic": re.compile("[\u0900-\u0dff]"),
    "thai": re.compile("[\u0e00-\u0eff]"),
    "japanese": re.compile("[\u3040-\u30ff]"),
    "korean": re.compile("[\u1100-\u11ff\uac00-\ud7af]"),
    "chinese": re.compile("[\u3400-\u9fff]"),
}
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
# A letter of these scripts says about as much as so many Latin letters.
_WEIGHT = 3
_WORD = re.compile("[^\\W\\d_]+")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that occur often in prompts. A word of several languages counts for each.
_WORDS = {
    "en": _names(
        "a about above act after all also am an and android another any app apple are area article as ask at bad be been "
        "before best better between birthday blog body book books box brief briefly bring build but buy by calculate can car "
        "case cat chapter child choose code compare complete convert cook correct could country create day describe did "
        "difference do does dog draw each earth easy english equation essay evaluate example examples explain fast few fill "
        "find fire first fix fly following food for from full funny game game games generate get girl give go good great "
        "guide had happy has have he hello help her here hi him his history hot house how i idea ideas if important improve "
        "in instructions into invent is issue it its job joke jokes just keep kill know language large last learn let letter "
        "life like list little live long look made make man many me mean meaning means model money more most movie much music "
        "my name names need new news no not number of off office old on one only open or other our out over paper paragraph "
        "people person picture plan play please poem poetry power problem product program project prove provide question "
        "questions quick quotes random read recipe rewrite same say scene school science sentence sentences set she short "
        "should show simple sing slow small so solve some someone song space speak spot start step steps still stop store "
        "stories story such suggest sum summarize summary table take teach tell text than that the their them then there "
        "these they thing things think this those time to today top topic translate travel trending true tutorial type "
        "understand unit up us use using very want was water way we weather well were what whats when where which while who "
        "whos why will with without woman wood word words work world would write writing year years yes you your"
    ),
    "de": _names(
        "aber alle als am auch auf aus bei beim bin bitte das dass dem den der des die dir du durch ein eine einem einen "
        "einer eines er es für gib hat ich ihr im ist kann kannst machen mein meine mich mir mit nach nicht noch nur oder "
        "schreibe sein sich sie sind sprichst über um und uns unter von vor warum was welche wenn wer werden wie wieder wir "
        "wird wo zu zum zur"
    ),
    "fr": _names(
        "au aux avec ce ces cette comment dans de des donne donner du elle en es est et être faire fait il je la le les leur "
        "liste mais me moi mon ne nous on ou où par pas peux plus pour pourquoi quand que quel quelle quels qui sa sans ses "
        "son sont sur tu un une vous écris"
    ),
    "es": _names(
        "al algo como con cual cuál cuando cuándo cuanto de del donde dónde el ella en entre eres es escribe esta está este "
        "explica hacer hay hola la las lo los mas más me mi muy no nos o para pero por porque puedes que qué quien quién se "
        "ser si sin sobre son su sus tengo tu un una y yo"
    ),
    "pt": _names(
        "ao aos as até com como criar da das de dos do é ela em entre era escreva está eu fazer foi isso mais mas me meu "
        "minha muito na não no nos o os ou para pela pelo por porque pode qual quais quando que quem se ser seu sobre sua "
        "são também tem um uma você"
    ),
    "it": _names(
        "al alla anche che chi ci come con cosa cos da dal dei del della delle di dimmi dove e è fare gli ho i il in io la le "
        "lo ma mi nel nella non o per perché perchè più puoi qual quale quali quando questo scrivi se si sono sono su tra "
        "un una"
    ),
    "nl": _names(
        "aan als bij dat de deze die dit een en er geef had heb hebben heeft hem het hoe hij ik in is je kan kun maar maak "
        "me meer met mijn naar niet nog of om ook op over schrijf te tot uit van voor waar waarom wat we welke wie wij worden "
        "zijn zo"
    ),
    "pl": _names(
        "a ale bez będzie być co czy czym dla do gdzie i ile ja jak jaka jakie jaki jakich jest jestem już ma mam między mi "
        "mnie można na napisz nie o od po pod podaj przez przy przykład są się taka takiej tak to ten tej tego tym w we z za "
        "że żeby"
    ),
    "tr": _names(
        "bana bir biz bu çok daha da de değil gibi hangi için ile kaç kim ki mi mı misin mısın musun nasıl ne neden nedir "
        "olan olarak sen şey sonra var ve veya verir ya yaz yok"
    ),
    "cs": _names("a aby ale bez být co do jak jaké jaký je jsem jsou kde když které který má mi na napiš nebo není o od po pro proč se si v ve z za že"),
    "sv": _names("alla av det den där du då en ett eller från för hur han har i inte jag kan men med mig mycket när och om på skriv som så till vad var varför vem vi är"),
    "da": _names("af alle at beskriv beskriva da de den der det dig du en er et for fra har hvad hvem hvordan hvorfor i ikke jeg kan med mig når og om på skriv som til var vi"),
    "vi": _names("bạn cho có của cách được gì hãy hỏi không khi là làm một nào người những như tôi thế trong và về với viết"),
    "id": _names("ada adalah apa bagaimana buat buatkan dan dari dengan di dalam ini itu jelaskan kamu kepada mengapa pada saya sebagai siapa tentang tidak tolong untuk yang"),
}  # fmt: skip
# Letters that tell a language that is written in Latin letters.
_LETTERS = {
    "de": re.compile("[ßẞ]"),
    "es": re.compile("[ñÑ¿¡]"),
    "pt": re.compile("[ãõÃÕ]"),
    "pl": re.compile("[ąęłńśźżĄĘŁŃŚŹŻ]"),
    "tr": re.compile("[ğışĞİŞ]"),
    "cs": re.compile("[ěřůĚŘŮ]"),
    "vi": re.compile("[ăđơưạảấầẩậắằẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ]"),
}
# So many words that a letter counts for.
_LETTER_WORDS = 2


def prompt_language(text: Text) -> str:
    """The language or script of a prompt ("en", "pl", "chinese", ...); "" if neither letters nor words tell it."""
    head, script, letters = text.text[:_SAMPLE], "", 0
    if not head.isascii():
        counts = {name: len(pattern.findall(head)) for name, pattern in _SCRIPTS.items()}
        script = max(counts, key=counts.__getitem__)
        if counts["japanese"] > 0.1 * counts["chinese"] and script == "chinese":
            script = "japanese"
        letters = counts[script]
        if letters * _WEIGHT > len(_LATIN.findall(head)):
            return script
    words = set(_WORD.findall(head.lower().replace("’", "'")))
    hits = {name: len(known & words) for name, known in _WORDS.items()}
    if not head.isascii():
        for name, marks in _LETTERS.items():
            hits[name] += _LETTER_WORDS * (marks.search(head) is not None)
    best = max(hits, key=hits.__getitem__)
    if letters and hits[best] <= 1:
        return script
    return best if hits[best] else ""
