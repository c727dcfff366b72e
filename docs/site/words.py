"""What the theme writes around a notebook, in the notebook's language."""

from __future__ import annotations

from collections.abc import Callable

WORDS = {
    'fr': {
        'Back to top': 'Retour en haut',
        'Framework': 'Framework',
        'Home': 'Accueil',
        'Language': 'Langue',
        'Next': 'Suivant',
        'On this page': 'Sur cette page',
        'Previous': 'Précédent',
        'Search': 'Rechercher',
        'Skip to content': 'Aller au contenu',
    },
    'ko': {
        'Back to top': '맨 위로',
        'Framework': '프레임워크',
        'Home': '홈',
        'Language': '언어',
        'Next': '다음',
        'On this page': '이 페이지의 목차',
        'Previous': '이전',
        'Search': '검색',
        'Skip to content': '본문으로 건너뛰기',
    },
    'vi': {
        'Back to top': 'Về đầu trang',
        'Framework': 'Framework',
        'Home': 'Trang chủ',
        'Language': 'Ngôn ngữ',
        'Next': 'Trang sau',
        'On this page': 'Trên trang này',
        'Previous': 'Trang trước',
        'Search': 'Tìm kiếm',
        'Skip to content': 'Chuyển đến nội dung',
    },
    'zh': {
        'Back to top': '返回顶部',
        'Framework': '框架',
        'Home': '首页',
        'Language': '语言',
        'Next': '下一页',
        'On this page': '本页目录',
        'Previous': '上一页',
        'Search': '搜索',
        'Skip to content': '跳转到正文',
    },
}


def words_of(language: str) -> Callable[[str], str]:
    """Return what gives the theme's words in a language, else in English."""
    words = WORDS.get(language, {})
    return lambda text: words.get(text, text)
