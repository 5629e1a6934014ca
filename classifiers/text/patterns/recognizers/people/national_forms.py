"""The forms of the numbers that states give to people, and what they are called there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Form:
    """Numbers of a country, checked by stdnum's `module`.

    `pattern` is what they look like in folded text, `alone` the part of it that needs no label.
    """

    country: str
    module: str
    pattern: str
    labels: tuple[str, ...]
    alone: str | None = None


GENERIC: Final = (
    *(
        "national id",
        "nationalid",
        "national_id",
        "national number",
        "id number",
        "id no",
        "id card",
    ),
    *("identity number", "identity card", "identification number", "personal number", "citizen"),
    *("personal id", "personal code", "tax id", "tax number", "taxpayer", "tin", "resident"),
    *(
        "social security",
        "social insurance",
        "insurance number",
        "health number",
        "national_identifier",
    ),
    *("ausweis", "personalausweis", "pièce d'identité", "documento", "identidad", "identidade"),
)
_BIRTH: Final = r"(?:0[1-9]|[12][0-9]|3[01])(?:0[1-9]|1[0-2])[0-9]{2}"
_DATE: Final = r"[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
FORMS: Final = (
    Form("AR", "ar.cuit", r"\d{2}-?\d{8}-?\d", ("cuit", "cuil"), r"2[0-7]-\d{8}-\d"),
    Form("AR", "ar.dni", r"\d{2}\.?\d{3}\.?\d{3}", ("dni",)),
    Form("AT", "at.vnr", r"\d{4} ?\d{6}", ("svnr", "sozialversicherungsnummer", "sv-nummer")),
    Form("AU", "au.tfn", r"\d{3} ?\d{3} ?\d{3}", ("tfn", "tax file number")),
    Form(
        "BE",
        "be.nn",
        r"\d{2}\.?\d{2}\.?\d{2}-?\d{3}[.-]?\d{2}",
        ("rijksregisternummer", "numéro national", "registre national", "nrn", "insz", "niss"),
        r"\d{2}\.\d{2}\.\d{2}-\d{3}[.-]\d{2}",
    ),
    Form("BG", "bg.egn", r"\d{10}", ("егн", "egn")),
    Form(
        "BR",
        "br.cpf",
        r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}",
        ("cpf", "cadastro de pessoa"),
        r"\d{3}\.\d{3}\.\d{3}-\d{2}",
    ),
    Form("CA", "ca.sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", ("sin", "social insurance", "nas")),
    Form(
        "CH",
        "ch.ssn",
        r"756\.?\d{4}\.?\d{4}\.?\d{2}",
        ("ahv", "avs", "ahv-nummer"),
        r"756\.\d{4}\.\d{4}\.\d{2}",
    ),
    Form(
        "CL",
        "cl.rut",
        r"\d{1,2}\.?\d{3}\.?\d{3}-?[\dk]",
        ("rut", "cédula"),
        r"\d{1,2}\.\d{3}\.\d{3}-[\dk]",
    ),
    Form(
        "CN",
        "cn.ric",
        r"\d{17}[\dx]",
        ("身份证", "身份证号", "居民身份"),
        r"[1-8]\d{5}(?:19|20)\d{9}[\dx]",
    ),
    Form("CU", "cu.ni", r"\d{11}", ("carné de identidad", "número de identidad")),
    Form(
        "CZ",
        "cz.rc",
        r"\d{6}/?\d{3,4}",
        ("rodné číslo", "rodne cislo", "rč"),
        r"\d{2}[0156]\d[0-3]\d/\d{3,4}",
    ),
    Form(
        "DE",
        "de.idnr",
        r"\d{2} ?\d{3} ?\d{3} ?\d{3}",
        (
            "steuer-id",
            "steuerid",
            "steueridentifikationsnummer",
            "idnr",
            "steuernummer",
            "steuer-identifikationsnummer",
        ),
    ),
    Form(
        "DK", "dk.cpr", r"\d{6}-?\d{4}", ("cpr", "personnummer", "cpr-nummer"), _BIRTH + r"-\d{4}"
    ),
    Form("DO", "do.cedula", r"\d{3}-?\d{7}-?\d", ("cédula",), r"\d{3}-\d{7}-\d"),
    Form("EC", "ec.ci", r"\d{10}", ("cédula", "ci")),
    Form("EE", "ee.ik", r"\d{11}", ("isikukood",)),
    Form("ES", "es.nie", r"[xyz]-?\d{7}-?[a-z]", ("nie",), r"[xyz]-?\d{7}-?[a-z]"),
    Form("ES", "es.dni", r"\d{8}-?[a-z]", ("dni", "nif"), r"\d{8}-?[trwagmyfpdxbnjzsqvhlcke]"),
    Form(
        "FI",
        "fi.hetu",
        r"\d{6}[-+a-fu-y]\d{3}[0-9a-z]",
        ("hetu", "henkilötunnus"),
        _BIRTH + r"[-+a]\d{3}[0-9a-y]",
    ),
    Form(
        "FR",
        "fr.nir",
        r"[1-478] ?\d\d ?\d\d ?(?:\d\d|2[ab]) ?\d{3} ?\d{3} ?\d\d",
        ("sécurité sociale", "nir", "insee", "numéro de sécu"),
        r"[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?(?:\d\d|2[ab]) ?\d{3} ?\d{3} ?\d\d",
    ),
    Form("FR", "fr.nif", r"[0-3]\d ?\d{2} ?\d{3} ?\d{3} ?\d{3}", ("numéro fiscal", "spi")),
    Form("GB", "gb.nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", ("nhs",)),
    Form("GB", "gb.utr", r"\d{5} ?\d{5}", ("utr",)),
    Form("GR", "gr.amka", r"\d{11}", ("αμκα", "amka")),
    Form("HR", "hr.oib", r"\d{11}", ("oib",)),
    Form("ID", "id.nik", r"\d{16}", ("nik", "ktp")),
    Form("IE", "ie.pps", r"\d{7}[a-z]{1,2}", ("pps", "ppsn")),
    Form("IL", "il.idnr", r"\d{8}-?\d", ("תעודת זהות", "ת.ז", "teudat zehut")),
    Form("IN", "in_.aadhaar", r"\d{4}[ -]?\d{4}[ -]?\d{4}", ("aadhaar", "aadhar", "uidai", "आधार")),
    Form("IN", "in_.pan", r"[a-z]{5}\d{4}[a-z]", ("pan", "permanent account number")),
    Form("IS", "is_.kennitala", r"\d{6}-?\d{4}", ("kennitala",)),
    Form(
        "IT",
        "it.codicefiscale",
        r"[a-z]{6}\d\d[a-z]\d\d[a-z]\d{3}[a-z]",
        ("codice fiscale", "cod. fisc", "c.f."),
        r"[a-z]{6}\d\d[abcdehlmprst]\d\d[a-z]\d{3}[a-z]",
    ),
    Form("JP", "jp.in_", r"\d{4}[ -]?\d{4}[ -]?\d{4}", ("マイナンバー", "my number", "個人番号")),
    Form(
        "KR", "kr.rrn", r"\d{6}-?[1-8]\d{6}", ("주민등록번호", "주민번호"), _DATE + r"-[1-4]\d{6}"
    ),
    Form("LT", "lt.asmens", r"\d{11}", ("asmens kodas",)),
    Form("LV", "lv.pvn", r"\d{6}-?\d{5}", ("personas kods",)),
    Form(
        "MX",
        "mx.curp",
        r"[a-z]{4}\d{6}[hmx][a-z]{5}[0-9a-z]\d",
        ("curp",),
        r"[a-z]{4}\d{6}[hm][a-z]{5}[0-9a-z]\d",
    ),
    Form("MX", "mx.rfc", r"[a-z&]{4}-?\d{6}-?[0-9a-z]{3}", ("rfc",)),
    Form(
        "MY",
        "my.nric",
        r"\d{6}-?\d{2}-?\d{4}",
        ("mykad", "nric", "kad pengenalan"),
        _DATE + r"-\d{2}-\d{4}",
    ),
    Form("NL", "nl.bsn", r"\d{4}\.?\d{2}\.?\d{3}", ("bsn", "burgerservicenummer", "sofinummer")),
    Form(
        "NO",
        "no.fodselsnummer",
        r"\d{6} ?\d{5}",
        ("fødselsnummer", "personnummer", "fnr"),
        _BIRTH + r" ?\d{5}",
    ),
    Form("NZ", "nz.ird", r"\d{2,3}-?\d{3}-?\d{3}", ("ird",)),
    Form("PE", "pe.cui", r"\d{8}-?[0-9a-k]", ("cui", "dni")),
    Form("PK", "pk.cnic", r"\d{5}-?\d{7}-?\d", ("cnic", "nicop"), r"[1-7]\d{4}-\d{7}-\d"),
    Form("PL", "pl.pesel", r"\d{11}", ("pesel",)),
    Form(
        "PT", "pt.cc", r"\d{8} ?\d ?[a-z]{2}\d", ("cartão de cidadão", "cc"), r"\d{8} \d [a-z]{2}\d"
    ),
    Form("PT", "pt.nif", r"\d{3} ?\d{3} ?\d{3}", ("nif", "contribuinte")),
    Form("RO", "ro.cnp", r"[1-9]\d{12}", ("cnp", "cod numeric personal")),
    Form("RU", "ru.inn", r"\d{12}", ("инн", "inn")),
    Form(
        "SE",
        "se.personnummer",
        r"(?:19|20)?\d{6}[-+]?\d{4}",
        ("personnummer", "samordningsnummer"),
        rf"(?:19|20)?{_DATE}[-+]\d{{4}}",
    ),
    Form("SI", "si.emso", r"\d{13}", ("emšo", "emso")),
    Form("SK", "sk.rc", r"\d{6}/?\d{3,4}", ("rodné číslo",)),
    Form(
        "TH",
        "th.pin",
        r"\d-?\d{4}-?\d{5}-?\d{2}-?\d",
        ("บัตรประชาชน", "เลขประจำตัวประชาชน"),
        r"[1-8]-\d{4}-\d{5}-\d{2}-\d",
    ),
    Form("TR", "tr.tckimlik", r"[1-9]\d{10}", ("tc kimlik", "t.c. kimlik", "tckn", "kimlik")),
    Form("UA", "ua.rntrc", r"\d{10}", ("рнокпп", "ідентифікаційний код", "іпн")),
    Form("US", "us.itin", r"9\d{2}-?\d{2}-?\d{4}", ("itin",), r"9\d{2}-\d{2}-\d{4}"),
    Form("VE", "ve.rif", r"[ve]-?\d{8}-?\d", ("rif", "cédula"), r"[ve]-\d{8}-\d"),
    Form("ZA", "za.idnr", r"\d{10} ?\d{3}|\d{13}", ("rsa id", "sa id", "south african id")),
)
