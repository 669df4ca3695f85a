"""Download the original authors' five trained models from Google Drive, or from a mirror, and check them.

    python download_models.py                          all five, below the current directory
    python download_models.py --only ffhq1024x1024     one of them
    python download_models.py --mirror https://host/x  the same files from a copy at https://host/x/<file name>

A file is written to `<name>.pt.part` and renamed once its size and MD5 are right; what an interrupted run leaves
behind, the next run goes on from; of two runs at once the second waits. Nothing downloaded is loaded here.
"""
import argparse
import codecs
import contextlib
import hashlib
import os
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urljoin, urlsplit

import requests
from tqdm import tqdm

from options import Parser
from utils import MAX_SENTENCE, UserError, held_lock, printable, run_command, writable_folder


class Model(NamedTuple):
    """One official file: its Google Drive id, size in bytes, MD5 (hex), and where it belongs below `--out_dir`."""
    drive_id: str
    size: int
    md5: str
    path: str


MODELS = {
    'sphere_init': Model('1CcYWbHFrJyb4u5rBFx_ww-ceYWd309tk', 63736197, 'a6be653435b0e49633e6838f18ff4df6',
                         'pretrained_renderer/sphere_init.pt'),
    'ffhq_vol_renderer': Model('1zzB-ACuas7lSAln8pDnIqlWOEg869CCK', 63736197, 'fe62f26032ccc8f04e1101b07bcd7462',
                               'pretrained_renderer/ffhq_vol_renderer.pt'),
    'ffhq1024x1024': Model('13s_dH768zJ3IHUjySVbD1DqcMolqKlBi', 202570217, '1ab9522157e537351fcf4faed9c92abb',
                           'full_models/ffhq1024x1024.pt'),
    'afhq_vol_renderer': Model('1xhZjuJt_teghAQEoJevAxrU5_8VqqX42', 63736197, 'cb3beb6cd3c43d9119356400165e7f26',
                               'pretrained_renderer/afhq_vol_renderer.pt'),
    'afhq512x512': Model('1jZcV5__EPS56JBllRmUfUjMHExql_eSq', 184908743, '91eeaab2da5c0d2134c04bb56ac5aeb6',
                         'full_models/afhq512x512.pt'),
}
DRIVE_URL = 'https://drive.google.com/uc'
DRIVE_PAGE = 'https://drive.google.com/file/d/{}/view'  # the same file for a person with a browser
TIMEOUT = (15, 60)  # seconds: to connect, and between two pieces of an answer
RETRY_PAUSES = (1, 3, 9)  # seconds before each new attempt at a transfer that broke off
CHUNK = 1 << 16  # bytes
MAX_PAGE = 1 << 20  # bytes of a web page; a page that asks for a confirmation is far shorter
PAGE_SECONDS = 60   # that the whole of a page may take
MAX_REDIRECTS = 20


class TransferError(Exception):
    """A server did not deliver the file. The message is a clause; `download` makes it a sentence with a remedy."""


class FormParser(HTMLParser):
    """Collects a page's forms as [method, action, {hidden input: value}]."""

    def __init__(self):
        super().__init__()
        self.forms = []

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or '' for name, value in attrs}
        if tag == 'form':
            self.forms.append([attrs.get('method', 'get').upper(), attrs.get('action', ''), {}])
        elif tag == 'input' and self.forms and attrs.get('type') == 'hidden':
            self.forms[-1][2][attrs.get('name', '')] = attrs.get('value', '')


def confirmation(page, page_url, url, cookies):
    """The request (method, URL, fields) that confirms Drive's page "can't scan this file for viruses".

    page: its HTML, which came from `page_url` when `url` was asked for; cookies: the session's jar. Today the page has
    a form with a `confirm` field (or puts that into the form's address); once, a cookie held the value to send back.
    None where the page asks for no confirmation.
    """
    parser = FormParser()
    parser.feed(page)
    for method, action, fields in parser.forms:
        if 'confirm' in fields or 'confirm' in parse_qs(urlsplit(action).query):
            return method, urljoin(page_url, action), fields
    for cookie in cookies:
        if cookie.name.startswith('download_warning'):
            return 'GET', url, {'confirm': cookie.value}
    return None


def is_page(reply):
    return reply.headers.get('Content-Type', '').lower().startswith('text/html')


def extent(reply):
    """(position in the file of the body's first byte, the file's size); None for what the server does not say."""
    if reply.status_code == 206:
        number = '[0-9]{1,18}'
        match = re.fullmatch(rf'bytes ({number})-{number}/({number}|\*)', reply.headers.get('Content-Range', ''))
        if not match:
            return None, None
        return int(match[1]), None if match[2] == '*' else int(match[2])
    length = reply.headers.get('Content-Length', '')
    return 0, int(length) if re.fullmatch('[0-9]{1,18}', length) else None


def text_of(reply):
    """The text of a web page. Raises TransferError where it is too long to be one that is expected here."""
    body, started = b'', time.monotonic()
    for chunk in reply.iter_content(CHUNK):
        body += chunk
        if len(body) > MAX_PAGE or time.monotonic() - started > PAGE_SECONDS:
            raise TransferError(f'{reply.url} answered with a web page without an end instead of the file')
    return body.decode(reply.encoding if known_encoding(reply.encoding) else 'utf-8', errors='replace')


def known_encoding(name):
    try:
        return bool(name and codecs.lookup(name))
    except LookupError:
        return False


class PlainSession(requests.Session):
    """A session that leaves redirects to `send`: requests reads their bodies, which may have no end."""

    def resolve_redirects(self, *_, **__):
        yield from ()


def send(session, method, url, **options):
    """Send a request and follow redirects, whose bodies are not read."""
    for _ in range(MAX_REDIRECTS):
        reply = session.request(method, url, **options)
        target = session.get_redirect_target(reply)
        if target is None:
            return reply
        reply.close()
        url = urljoin(reply.url, requests.utils.requote_uri(target))
        options.pop('params', None)  # they belong to the first address
        if reply.status_code not in (307, 308):
            method = 'GET'
            options.pop('data', None)
    raise requests.TooManyRedirects(f'more than {MAX_REDIRECTS} redirects', response=reply)


def ask(session, method, url, fields, offset):
    """Send one request for a file from byte `offset` on; what cannot be given in part is asked for as a whole."""
    body = {'params' if method == 'GET' else 'data': fields, 'stream': True, 'timeout': TIMEOUT}
    if offset:
        reply = send(session, method, url, headers={'Range': f'bytes={offset}-'}, **body)
        unusable = reply.status_code == 206 and (is_page(reply) or extent(reply)[0] != offset)
        if reply.status_code != 416 and not unusable:
            return reply
        reply.close()
    return send(session, method, url, **body)


def open_file(session, url, offset):
    """A streaming response whose body is the file, from byte `offset` or from 0 (see `extent`).

    Goes through Drive's confirmation page. Raises TransferError where the server has something else to say, and
    requests.RequestException where it cannot be reached or is out of order for now.
    """
    request = 'GET', url, {}
    for _ in range(3):  # a page or two, then the file
        reply = ask(session, *request, offset)
        page = text_of(reply) if is_page(reply) else None
        if page and re.search('too many users have viewed or downloaded|google drive - quota exceeded', page, re.I):
            raise TransferError(f'Google Drive gives {url} to nobody for now, because too many people downloaded it '
                                'recently')
        if reply.status_code >= 500 or reply.status_code == 429:
            raise requests.HTTPError(response=reply)
        if reply.status_code not in (200, 206) or extent(reply)[0] not in (0, offset):
            reason = re.sub('[^ -~]', '?', reply.reason or '')[:60]  # anything may stand there
            raise TransferError(f'{url} answered HTTP {reply.status_code} {reason}'.rstrip())
        if page is None:
            return reply
        request = confirmation(page, reply.url, url, session.cookies)
        if request is None:
            break
    raise TransferError(f'{url} answered with a web page instead of the file')


def receive(reply, partial, size, name):
    """Write the body of `open_file`'s response to `partial`, which must not grow beyond `size` bytes."""
    start, total = extent(reply)
    if total not in (None, size):
        raise TransferError(f'{reply.url} has {total} bytes and not {size}, so it is another file')
    try:
        with open(partial, 'ab' if start else 'wb') as file, \
                tqdm(desc=name, initial=start, total=size, unit='B', unit_scale=True) as bar:
            for chunk in reply.iter_content(CHUNK):
                if file.tell() == 0 and chunk.lstrip().startswith(b'<'):
                    raise TransferError(f'{reply.url} is a web page instead of the file')
                if file.tell() + len(chunk) > size:
                    raise TransferError(f'{reply.url} has more than {size} bytes, so it is another file')
                file.write(chunk)
                bar.update(len(chunk))
    except TransferError:
        partial.unlink()
        raise


def size_of(path):
    return path.stat().st_size if path.exists() else 0


def fetch(url, partial, size, name):
    """Bring the file `partial` to `size` bytes, going on from what it holds.

    A transfer that breaks off is tried again after each of RETRY_PAUSES; a server that cannot even be reached is not,
    since waiting seldom brings a network. Raises TransferError; `partial` then keeps what came.
    """
    reached = False
    for pause in (*RETRY_PAUSES, None):
        if size_of(partial) == size:
            return
        try:
            with PlainSession() as session:
                # As it is, for the bytes must add up; and in English, for the quota page is known by its words.
                session.headers.update({'Accept-Encoding': 'identity', 'Accept-Language': 'en'})
                with open_file(session, url, size_of(partial)) as reply:
                    reached = True
                    receive(reply, partial, size, name)
            trouble = 'the server closed the connection'
        except requests.RequestException as error:
            trouble = describe(error)
            if not reached and error.response is None:
                raise TransferError(f'cannot reach {url} ({trouble})') from error
        except ValueError as error:  # a redirect or a form to what is no address, which requests lets through
            raise TransferError(f'{url} leads to a malformed address ({error})') from error
        if pause is not None:
            time.sleep(pause)
    if not size_of(partial):
        raise TransferError(f'{url} did not deliver the file ({trouble})')
    if size_of(partial) != size:
        raise TransferError(f'the transfer from {url} broke off ({trouble}) at {size_of(partial)} of {size} bytes; '
                            f'what came is kept in {partial} for the next run')


def describe(error):
    """A requests.RequestException in a few words."""
    if isinstance(error, requests.TooManyRedirects):
        return 'it redirects without an end'
    if error.response is not None:
        return f'HTTP {error.response.status_code}'
    kinds = {requests.exceptions.InvalidHeader: 'its answer has a malformed header',
             requests.exceptions.SSLError: 'its TLS certificate was not accepted',
             requests.exceptions.ProxyError: 'the proxy in the environment refused',
             requests.Timeout: 'no answer in time; is there a network?',
             requests.ConnectionError: 'the connection failed; is there a network?'}
    return next((words for kind, words in kinds.items() if isinstance(error, kind)), type(error).__name__)


def fault_of(path, model):
    """What is wrong with the file at `path`, as words to follow "the file"; None where size and MD5 are right."""
    if size_of(path) != model.size:
        return f'has {size_of(path)} bytes and not {model.size}'
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return None if digest.hexdigest() == model.md5 else f'has the MD5 {digest.hexdigest()} and not {model.md5}'


def already_there(name, path):
    """Whether the official file `name` is at `path`, which is then said. UserError where another file is there."""
    if not path.exists():
        return False
    if fault := fault_of(path, MODELS[name]):
        raise UserError(f'{path} is not the official {name} (it {fault}) and stays as it is: move it away or choose '
                        'another folder with --out_dir.')
    print(f'{name}: already at {path}, size and MD5 are right')
    return True


@contextlib.contextmanager
def alone(path):
    """Be the only process that brings `path`, for all write the same `.part`. Waits for another, which it says."""
    lock = held_lock(path.with_name(f'.{path.name}.lock'), lambda: print(
        f'{path} is being downloaded by another process: waiting for it', flush=True))
    try:
        yield
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):  # Windows removes no open file
                os.unlink(lock.lock_file)  # while it is held: who waits for it notices, and makes another
            lock.release()


def download(name, out_dir='.', mirror=None):
    """Bring the official file `name` (a key of MODELS) to its place below `out_dir`, unless it is there already.

    mirror: URL of a folder that has the file under its own name; default: Google Drive.
    Raises UserError where the file cannot be had, or where another file (of a training here?) has its place.
    """
    path = Path(out_dir) / MODELS[name].path
    if already_there(name, path):
        return
    writable_folder(path.parent, '--out_dir')
    with alone(path):
        if not already_there(name, path):  # whoever it waited for may have brought it
            bring(name, path, mirror)


def bring(name, path, mirror):
    """What `download` does where there is no file at `path` yet."""
    model = MODELS[name]
    if mirror:
        url = f'{mirror.rstrip("/")}/{path.name}'
        remedy = 'try again later, check --mirror, or leave it out to download from Google Drive'
    else:
        url = f'{DRIVE_URL}?export=download&id={model.drive_id}'
        remedy = ('try again later, name a folder that has a copy with --mirror URL, or download '
                  f'{DRIVE_PAGE.format(model.drive_id)} in a browser and save it as {path}')
    partial = path.with_name(f'{path.name}.part')
    if size_of(partial) >= model.size and fault_of(partial, model):
        partial.unlink()
    try:
        fetch(url, partial, model.size, name)
        if fault := fault_of(partial, model):
            partial.unlink()
            raise TransferError(f'the file from {url} {fault}, and was removed')
    except TransferError as error:
        raise UserError(f'{name}: {error}; {remedy}.') from error
    os.replace(partial, path)
    print(f'{name}: saved as {path}, size and MD5 are right')


def folder_url(text):
    """`text` where it is a web folder's address that "/<file name>" may be added to, else argparse's error."""
    with contextlib.suppress(ValueError):  # what the standard library says of a malformed host, port or address
        parts = urlsplit(text)
        if parts.scheme in ('http', 'https') and not parts.query and not parts.fragment and parts.port != 0 \
                and parts.hostname and parts.hostname.encode('idna'):
            return text
    raise argparse.ArgumentTypeError(f'{text} is not the address of a folder, like https://example.org/models')


def read_flags(argv=None):
    """The command line as a namespace; `only` is a list of keys of MODELS. Raises UserError."""
    parser = Parser(description='Download the official models and check their size and MD5.')
    parser.add_argument('--only', action='append', metavar='NAME',
                        help=f'only this file (may be repeated, or several with commas): {", ".join(MODELS)}')
    parser.add_argument('--mirror', type=folder_url, metavar='URL',
                        help='download from URL/<file name> instead of Google Drive')
    parser.add_argument('--out_dir', default='.', metavar='FOLDER',
                        help='folder that gets pretrained_renderer/ and full_models/ (default: the current one)')
    parser.add_argument('--list', action='store_true', help='list the files with their addresses, and stop')
    flags = parser.parse_args(argv)
    wanted = list(MODELS) if flags.only is None else [name.strip() for name in ','.join(flags.only).split(',')]
    for name in wanted:
        if name not in MODELS:
            parser.error(f'--only {name}: there is no such model, choose from {", ".join(MODELS)}')
    flags.only = list(dict.fromkeys(wanted))
    return flags


def main(flags):
    failures = []
    for name in flags.only:
        if flags.list:
            model = MODELS[name]
            print(f'{name:18s}{model.size / 1e6:6.1f} MB  MD5 {model.md5}  {DRIVE_PAGE.format(model.drive_id)}  '
                  f'-> {Path(flags.out_dir) / model.path}')
            continue
        try:
            download(name, flags.out_dir, flags.mirror)
        except UserError as error:  # the other files may fare better
            failures.append(str(error))
    for sentence in failures[:-1]:
        print(printable(sentence, MAX_SENTENCE), file=sys.stderr)
    if failures:
        raise UserError(failures[-1])


if __name__ == '__main__':
    run_command('download_models', read_flags)
