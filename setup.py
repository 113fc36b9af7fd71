"Hands the lists in settings.ini to setuptools; everything else stands in pyproject.toml."
from configparser import ConfigParser
from setuptools import setup

ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
def lines(key): return [o.strip() for o in cfg.get(key, '').splitlines() if o.strip()]

suffix = '_requirements'
setup(install_requires=lines('requirements'),
      extras_require={k.removesuffix(suffix): lines(k) for k in cfg if k.endswith(suffix)},
      entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['cxr_nb = cxr_nb._modidx:d']})
